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
pub(crate) fn headers(
    message: &Message,
    failure: &Failure,
    crashes: u32,
    consumer: Option<&str>,
    now: SystemTime,
) -> Headers {
    let mut headers = Headers::with_capacity(13);
    // As the store knows it: this may be the original of a message that was redriven meanwhile, and its own redrive must
    // not be taken for that one.
    if let Some(redrive) = failure.redrive_count().filter(|redrive| *redrive > message.redrive_count()) {
        headers.append(wire::REDRIVE_COUNT, redrive.to_string());
    }
    headers.append(wire::DEAD_LETTER_REASON, Reason::of(failure).as_str());
    headers.append(wire::DEAD_LETTER_ERROR, cut(failure.cause(), ERROR_LIMIT));
    let attempts = failure.attempts().unwrap_or(message.attempt()).saturating_add(crashes);
    headers.append(wire::DEAD_LETTER_ATTEMPTS, attempts.to_string());
    if let Some(consumer) = consumer {
        headers.append(wire::DEAD_LETTER_CONSUMER, consumer.to_owned());
    }
    let carried = message.retry_header(wire::RETRY_FIRST_FAILED_AT).map(str::to_owned);
    let first = carried.unwrap_or_else(|| wire::format_time(failure.first_failed_at().unwrap_or(now)));
    headers.append(wire::DEAD_LETTER_FIRST_FAILED_AT, first);
    headers.append(wire::DEAD_LETTER_LAST_FAILED_AT, wire::format_time(now));
    let is_copy = message.is_delayed_copy();
    if !is_copy || !write_first_origin(message.headers(), &mut headers) {
        message.origin().write_to(wire::DEAD_LETTER_PREFIX, message.timestamp(), &mut headers);
    }
    if let Some(defect) = message.defect().filter(|defect| !defect.dropped().is_empty()) {
        headers.append(wire::DEAD_LETTER_DROPPED, cut(defect.dropped().join(", "), ERROR_LIMIT));
    }
    headers
}

/// Of a delayed copy, where it came from at first: the place where it waited says nothing. Whether it is one.
fn write_first_origin(known: &Headers, headers: &mut Headers) -> bool {
    const LOG: &[&str] = &["topic", "partition", "offset"];
    const QUEUE: &[&str] = &["queue", "exchange", "routing-key"];
    let value = |name: &str| known.get(&format!("{}{name}", wire::RETRY_PREFIX)).cloned();
    let has = |names: &[&str]| names.iter().all(|name| value(name).is_some());
    if value("source").is_none() || !has(LOG) && !has(QUEUE) {
        return false;
    }
    for name in [&["source"], LOG, &["timestamp"], QUEUE].concat() {
        if let Some(value) = value(name) {
            headers.append(format!("{}{name}", wire::DEAD_LETTER_PREFIX), value);
        }
    }
    true
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
    use crate::Origin;

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
    /// The headers of a dead letter that start with `dead-letter-` and tell where it came from.
    fn origin(retry: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut message = Message::builder().origin(Origin::Log {
            system: "kafka",
            topic: "g.retry.30s".into(),
            partition: 3,
            offset: 7,
        });
        for (name, value) in retry {
            message = message.header(*name, *value);
        }
        let headers = headers(&message.build(), &Failure::transient("down"), 0, None, SystemTime::UNIX_EPOCH);
        let all = headers.iter().map(|(name, value)| {
            let value = value.map(|value| String::from_utf8(value.to_vec()).unwrap());
            (name.trim_start_matches("dead-letter-").to_owned(), value.unwrap())
        });
        const OTHERS: [&str; 5] = ["reason", "error", "attempts", "first-failed-at", "last-failed-at"];
        all.filter(|(name, _)| !OTHERS.contains(&name.as_str())).collect()
    }

    #[test]
    fn a_delayed_copy_is_told_by_where_it_came_from_at_first() {
        let mut log = vec![
            ("retry-source", "kafka"),
            ("retry-topic", "orders"),
            ("retry-partition", "1"),
            ("retry-offset", "42"),
            ("retry-timestamp", "2026-11-25T12:00:00.000Z"),
            ("retry-attempt", "4"),
        ];
        let expected: Vec<_> = log[..5]
            .iter()
            .map(|(name, value)| (name.trim_start_matches("retry-").to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(origin(&log), expected);
        log.remove(3);
        let place = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let waited = [("source", "kafka"), ("topic", "g.retry.30s"), ("partition", "3"), ("offset", "7")];
        assert_eq!(origin(&log), waited.map(|(name, value)| place(name, value)), "half of an origin is none");
        let queue = [
            ("retry-source", "amqp"),
            ("retry-queue", "orders"),
            ("retry-exchange", ""),
            ("retry-routing-key", "orders"),
        ];
        let expected = [("source", "amqp"), ("queue", "orders"), ("exchange", ""), ("routing-key", "orders")];
        assert_eq!(origin(&queue), expected.map(|(name, value)| place(name, value)));
    }
}
