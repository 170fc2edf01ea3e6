//! The operator's side: what is in the tables, and what has to be done by hand.

pub(crate) mod dialect;
pub(crate) mod filter;
pub(crate) mod inbox;
pub(crate) mod outbox;
#[cfg(test)]
mod race;
pub(crate) mod row;
mod statement;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, as the statements give them.
pub(crate) fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn count(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}
