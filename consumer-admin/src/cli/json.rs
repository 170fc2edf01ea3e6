//! One object a line, for programs.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_STANDARD};
use consumer_admin::{
    AdminError, Group, InboxRecord, InboxStats, OutboxMessage, OutboxRow, OutboxStats, terminal,
};
use consumer_core::{dead_letters::DeadLetter, message::wire};
use serde_json::{Value, json};

use super::pager::out;

pub(crate) fn print(value: &Value) -> Result<(), AdminError> {
    out(&format!("{}\n", terminal::json(value.to_string())))
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

/// Text as it is; what is no text as `{"base64": "…"}`, as in the headers of an outbox.
fn bytes(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => text.into(),
        Some((Err(_), bytes)) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// The lag, then counts by destination and state, then errors.
pub(crate) fn outbox_stats(stats: &OutboxStats) -> Vec<Value> {
    let lag = &stats.lag;
    let first = json!({
        "waiting": lag.waiting,
        "oldest_seconds": lag.oldest.as_secs_f64(),
        "held": lag.held,
        "quarantined": lag.quarantined,
    });
    let rows = stats
        .rows
        .iter()
        .map(|it| json!({ "destination": it.destination, "state": it.state.to_string(), "count": it.count }));
    let errors = stats
        .errors
        .iter()
        .map(|it| json!({ "destination": it.destination, "error": it.error, "count": it.count }));
    std::iter::once(first).chain(rows).chain(errors).collect()
}

/// What `outbox list` says of a row.
pub(crate) fn outbox_row(row: &OutboxRow) -> Value {
    json!({
        "row": row.id,
        "state": row.state.to_string(),
        "destination": row.destination,
        "id": row.message_id,
        "key": bytes(row.key.as_deref()),
        "attempts": row.attempts,
        "error": row.error,
        "created_at": time(Some(row.created_at)),
        "due_at": time(row.due_at),
        "published_at": time(row.published_at),
        "bytes": row.bytes,
    })
}

/// With headers and payload. Headers that cannot be read are the text that is in the table.
pub(crate) fn outbox_message(message: &OutboxMessage) -> Value {
    let mut value = outbox_row(&message.row);
    let headers = match message.read_headers() {
        Ok(headers) => {
            headers.iter().map(|(name, value)| json!([name, bytes(value.map(|it| &it[..]))])).collect()
        }
        Err(_) => message.headers.clone().into(),
    };
    value["headers"] = headers;
    value["payload"] = bytes(message.payload.as_deref());
    value
}

pub(crate) fn inbox_stats(stats: &InboxStats) -> Value {
    json!({
        "consumer": stats.consumer,
        "count": stats.count,
        "oldest": time(Some(stats.oldest)),
        "newest": time(Some(stats.newest)),
    })
}

pub(crate) fn inbox_record(record: &InboxRecord) -> Value {
    json!({
        "consumer": record.consumer,
        "key": bytes(Some(&record.key)),
        "recorded_at": time(Some(record.recorded_at)),
    })
}
