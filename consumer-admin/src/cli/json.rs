//! One object a line, for programs.

use std::time::SystemTime;

use consumer_admin::{AdminError, Group};
use consumer_core::{dead_letters::DeadLetter, message::wire};
use serde_json::{Value, json};

use super::pager::out;

pub(crate) fn print(value: &Value) -> Result<(), AdminError> {
    out(&format!("{value}\n"))
}

fn time(at: Option<SystemTime>) -> Option<String> {
    at.map(wire::format_time)
}

/// What `list` says of a letter.
pub(crate) fn letter(letter: &DeadLetter) -> Value {
    json!({
        "place": letter.place().to_string(),
        "reason": letter.reason(),
        "error": letter.error(),
        "attempts": letter.attempts(),
        "consumer": letter.consumer(),
        "id": letter.id(),
        "key": letter.key(),
        "first_failed_at": time(letter.first_failed_at()),
        "last_failed_at": time(letter.last_failed_at()),
        "source": letter.source(),
        "origin": letter.origin(),
        "redrive_count": letter.redrive_count(),
        "bytes": letter.message().payload().len(),
    })
}

pub(crate) fn group(group: &Group) -> Value {
    json!({
        "count": group.count,
        "reason": group.reason,
        "error": group.error,
        "consumer": group.consumer,
        "first": time(group.first),
        "last": time(group.last),
    })
}
