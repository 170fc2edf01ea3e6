//! The names of headers on the wire. They are public and stable: other languages read and write them.
//!
//! Names are lower case, values UTF-8, times RFC 3339 in UTC with milliseconds.

use std::time::{Duration, SystemTime};

/// The idempotency key a publisher stamps.
pub const MESSAGE_ID: &str = "message-id";
/// The message key on brokers that have none of their own.
pub const MESSAGE_KEY: &str = "message-key";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";

/// What all headers of a dead letter start with.
pub const DEAD_LETTER_PREFIX: &str = "dead-letter-";
/// Why: `permanent`, `undecodable`, `attempts-exhausted`, `conflict` or `no-key`.
pub const DEAD_LETTER_REASON: &str = "dead-letter-reason";
/// The error chain, outermost first, cut at 4 KiB.
pub const DEAD_LETTER_ERROR: &str = "dead-letter-error";
/// Failed calls known, plus crashes counted alone.
pub const DEAD_LETTER_ATTEMPTS: &str = "dead-letter-attempts";
/// The consumer that set the message aside.
pub const DEAD_LETTER_CONSUMER: &str = "dead-letter-consumer";
/// When the message failed first.
pub const DEAD_LETTER_FIRST_FAILED_AT: &str = "dead-letter-first-failed-at";
/// When it failed last.
pub const DEAD_LETTER_LAST_FAILED_AT: &str = "dead-letter-last-failed-at";
/// What kind of source it came from: `kafka`, `amqp`, `memory` or `sql`.
pub const DEAD_LETTER_SOURCE: &str = "dead-letter-source";
/// What of the original could not be carried over.
pub const DEAD_LETTER_DROPPED: &str = "dead-letter-dropped";

/// What all headers of a delayed copy start with.
pub const RETRY_PREFIX: &str = "retry-";
/// The attempt that comes next, 1-based.
pub const RETRY_ATTEMPT: &str = "retry-attempt";
/// How many delays the message has waited for, this one included.
pub const RETRY_ROUND: &str = "retry-round";
/// What a delayed copy came from at first: `kafka`, `amqp` or `memory`.
pub const RETRY_SOURCE: &str = "retry-source";
/// Not before this time.
pub const RETRY_NOT_BEFORE: &str = "retry-not-before";
/// When the message failed first.
pub const RETRY_FIRST_FAILED_AT: &str = "retry-first-failed-at";

/// What the origin of a redriven message starts with.
pub const REDRIVE_PREFIX: &str = "redrive-";
/// How often the message was redriven.
pub const REDRIVE_COUNT: &str = "redrive-count";
/// When it was redriven last.
pub const REDRIVEN_AT: &str = "redriven-at";

/// The last millisecond that RFC 3339, whose years have four digits, can name.
const LAST_MILLI: Duration = Duration::from_millis(253_402_300_799_999);

/// Writes a time as RFC 3339 in UTC with milliseconds. What is before 1970 is written as its beginning, and what is behind
/// the year 9999 as its end: a publisher that counts in other units than its broker stamps such times.
pub fn format_time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().min(LAST_MILLI);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Reads a time as [`format_time`] writes it.
///
/// # Errors
/// With the reason in words when the text is no RFC 3339 time in UTC.
pub fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|error| format!("not an RFC 3339 time in UTC: {error}"))
}

/// Writes a delay as it stands in the names of the queues and topics where messages wait for it: `30s`, `1500ms`.
pub fn format_delay(delay: Duration) -> String {
    let millis = delay.as_millis().max(1);
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

/// Reads a delay as [`format_delay`] writes it.
pub fn parse_delay(text: &str) -> Option<Duration> {
    let (number, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis),
        None => (text.strip_suffix('s')?, Duration::from_secs),
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number).map(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_and_round_trip() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
        assert_eq!(format_time(at), "2023-11-14T22:13:20.042Z");
        assert_eq!(parse_time(&format_time(at)), Ok(at));
        assert!(parse_time("yesterday").is_err());
    }

    /// Microseconds where milliseconds belong: no reason to panic over it.
    #[test]
    fn times_that_have_no_such_form_are_written_as_the_nearest_that_has() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_042_000);
        assert_eq!(format_time(far), "9999-12-31T23:59:59.999Z");
        let early = SystemTime::UNIX_EPOCH - Duration::from_millis(1);
        assert_eq!(format_time(early), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn delays_are_written_in_whole_seconds_where_they_are() {
        let written = [30_000, 1_500, 1_000, 300_000, 0].map(|ms| format_delay(Duration::from_millis(ms)));
        assert_eq!(written, ["30s", "1500ms", "1s", "300s", "1ms"]);
        assert_eq!(format_delay(Duration::from_micros(1_999)), "1ms");
        for text in written {
            assert_eq!(parse_delay(&text).map(format_delay), Some(text));
        }
        for odd in ["", "s", "ms", "30", "+3s", "3m", "30sec", "99999999999999999999s"] {
            assert_eq!(parse_delay(odd), None, "{odd}");
        }
    }
}
