//! The headers that tell where a dead letter comes from and why it is one.

use std::{fmt, time::SystemTime};

use crate::{Failure, FailureKind, Headers, Message, message::wire};

/// The longest error text in a header, in bytes.
const ERROR_LIMIT: usize = 4096;

/// Why a message was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The handler said that it will not succeed.
    Permanent,
    /// The message could not be read.
    Undecodable,
    /// It failed too often, or killed the process too often.
    AttemptsExhausted,
    /// Its idempotency key stands for another payload.
    Conflict,
    /// It has no idempotency key.
    NoKey,
}

impl Reason {
    /// The reason as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Permanent => "permanent",
            Reason::Undecodable => "undecodable",
            Reason::AttemptsExhausted => "attempts-exhausted",
            Reason::Conflict => "conflict",
            Reason::NoKey => "no-key",
        }
    }

    pub(super) fn of(failure: &Failure) -> Self {
        match failure.kind() {
            FailureKind::Permanent => Reason::Permanent,
            FailureKind::Undecodable => Reason::Undecodable,
            FailureKind::Conflict => Reason::Conflict,
            FailureKind::NoKey => Reason::NoKey,
            FailureKind::Transient | FailureKind::Exhausted | FailureKind::Cancelled => {
                Reason::AttemptsExhausted
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The headers of a dead letter. `crashes` are those counted alone by the dedup store.
pub(super) fn headers(
    message: &Message,
    failure: &Failure,
    crashes: u32,
    consumer: Option<&str>,
    now: SystemTime,
) -> Headers {
    let mut headers = Headers::with_capacity(12);
    headers.append(wire::DEAD_LETTER_REASON, Reason::of(failure).as_str());
    headers.append(wire::DEAD_LETTER_ERROR, cut(failure.cause(), ERROR_LIMIT));
    let attempts = failure.attempts().unwrap_or(message.attempt()).saturating_add(crashes);
    headers.append(wire::DEAD_LETTER_ATTEMPTS, attempts.to_string());
    if let Some(consumer) = consumer {
        headers.append(wire::DEAD_LETTER_CONSUMER, consumer.to_owned());
    }
    let carried = message.headers().get_str(wire::RETRY_FIRST_FAILED_AT).map(str::to_owned);
    let first = carried.unwrap_or_else(|| wire::format_time(failure.first_failed_at().unwrap_or(now)));
    headers.append(wire::DEAD_LETTER_FIRST_FAILED_AT, first);
    headers.append(wire::DEAD_LETTER_LAST_FAILED_AT, wire::format_time(now));
    message.origin().write_to(wire::DEAD_LETTER_PREFIX, message.timestamp(), &mut headers);
    if let Some(defect) = message.defect().filter(|defect| !defect.dropped().is_empty()) {
        headers.append(wire::DEAD_LETTER_DROPPED, cut(defect.dropped().join(", "), ERROR_LIMIT));
    }
    headers
}

/// Cuts a text at a character, marking the cut.
fn cut(mut text: String, limit: usize) -> String {
    const MARK: &str = "…";
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - MARK.len()));
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let text = cut("é".repeat(4096), ERROR_LIMIT);
        assert!(text.len() <= ERROR_LIMIT && text.ends_with('…'), "{}", text.len());
        assert_eq!(cut("short".into(), ERROR_LIMIT), "short");
    }

    #[test]
    fn crashes_are_added_to_failed_calls() {
        let mut failure = Failure::transient("down");
        failure.set_attempts(2);
        let headers = headers(&Message::new("x"), &failure, 3, Some("mails"), SystemTime::UNIX_EPOCH);
        assert_eq!(headers.get_str("dead-letter-attempts"), Some("5"));
        assert_eq!(headers.get_str("dead-letter-reason"), Some("attempts-exhausted"));
        assert_eq!(headers.get_str("dead-letter-consumer"), Some("mails"));
        assert_eq!(headers.get_str("dead-letter-first-failed-at"), Some("1970-01-01T00:00:00.000Z"));
    }
}
