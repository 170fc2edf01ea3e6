//! The message that goes back.

use std::{fmt, sync::Arc, time::SystemTime};

use super::DeadLetter;
use crate::{Headers, Outgoing, message::wire};

/// A dead letter that cannot go back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWayBack(&'static str);

const NO_ORIGIN: NoWayBack =
    NoWayBack("the dead letter does not say which topic or queue it came from: name a target");
/// With the same count again, the dedup store would take it for the redrive before, and it would be lost.
const COUNTED_OUT: NoWayBack =
    NoWayBack("its redrive-count is as high as it can be: no redrive can be told from the last");

impl fmt::Display for NoWayBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NoWayBack {}

/// The message to publish for `letter`: to its origin, or to `to`.
///
/// Payload, key and the headers of the original stay byte for byte. Its `dead-letter-*` and `retry-*` headers are taken
/// off, so that what comes next writes true ones and the count of rounds starts anew; `redrive-count` is one higher, which
/// is what lets the dedup store run a key once more that is dead-lettered. `redrive-*` tells the origin the message had
/// first, whatever happened to it since: a position used as idempotency key is read from there.
///
/// The same letter always gets the same `redrive-count`, so that a redrive that is interrupted and started again causes
/// one more run and no second.
///
/// # Errors
/// When there is no `to` and the letter names no origin, or its `redrive-count` cannot grow.
pub fn redriven(letter: &DeadLetter, to: Option<Arc<str>>, now: SystemTime) -> Result<Outgoing, NoWayBack> {
    let target = to.or_else(|| letter.origin().map(Arc::from)).ok_or(NO_ORIGIN)?;
    let count = letter.redrive_count().checked_add(1).ok_or(COUNTED_OUT)?;
    let headers = letter.message().headers();
    let mut set = Headers::with_capacity(8);
    set.append(wire::REDRIVE_COUNT, count.to_string());
    set.append(wire::REDRIVEN_AT, wire::format_time(now));
    let first = [wire::REDRIVE_PREFIX, wire::DEAD_LETTER_PREFIX]
        .into_iter()
        .find(|prefix| headers.contains(&format!("{prefix}source")));
    for name in first.into_iter().flat_map(|_| ORIGIN) {
        let value = first.and_then(|prefix| headers.get(&format!("{prefix}{name}")));
        if let Some(value) = value {
            set.append(format!("{}{name}", wire::REDRIVE_PREFIX), value.clone());
        }
    }
    Ok(Outgoing::copy(target, letter.message().clone())
        .remove_prefix(wire::DEAD_LETTER_PREFIX)
        .remove_prefix(wire::RETRY_PREFIX)
        .remove_prefix(wire::REDRIVE_PREFIX)
        .set_all(&set))
}

/// The parts of an origin, as the wire format names them.
const ORIGIN: [&str; 8] =
    ["source", "topic", "partition", "offset", "timestamp", "queue", "exchange", "routing-key"];
