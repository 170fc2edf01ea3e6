//! Everything here that comes from outside: headers, times, payloads, what a redrive reads.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuzz::Target;
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Failure, Headers, IdempotencyKey, Message, Origin, Outgoing,
    dead_letters::{BrokerDeath, DeadLetter, Place, redriven},
    handler::{FromMessage, Json},
    layers::dead_letter::provenance_of,
    message::wire,
};

/// What a header of ours may hold.
const VALUES: &[&str] = &[
    "4",
    "kafka",
    "amqp",
    "memory",
    "sql",
    "orders",
    "orders.placed",
    "17",
    "3",
    "2026-11-25T12:00:00.000Z",
    "permanent",
    "attempts-exhausted",
    "mailer: connection refused: broken pipe",
    "order-mails",
    "o-17",
    "0192d3a1-5c1e-7aaa-8000-3f0e5d6b7c8d",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
];
const NAMES: &[&str] = &[
    "message-id",
    "message-key",
    "traceparent",
    "tracestate",
    "dead-letter-reason",
    "dead-letter-error",
    "dead-letter-attempts",
    "dead-letter-consumer",
    "dead-letter-first-failed-at",
    "dead-letter-last-failed-at",
    "dead-letter-source",
    "dead-letter-topic",
    "dead-letter-partition",
    "dead-letter-offset",
    "dead-letter-timestamp",
    "dead-letter-queue",
    "dead-letter-exchange",
    "dead-letter-routing-key",
    "dead-letter-dropped",
    "dead-letter-",
    "retry-attempt",
    "retry-round",
    "retry-not-before",
    "retry-first-failed-at",
    "retry-source",
    "retry-topic",
    "retry-partition",
    "retry-offset",
    "retry-timestamp",
    "retry-queue",
    "retry-exchange",
    "retry-routing-key",
    "retry-",
    "redrive-count",
    "redriven-at",
    "redrive-source",
    "redrive-topic",
    "redrive-partition",
    "redrive-offset",
    "redrive-timestamp",
    "redrive-queue",
    "redrive-",
    "ce_source",
    "ce_id",
    "cloudEvents:source",
    "cloudEvents:id",
    "x-mine",
    "",
];

fn headers() -> impl Strategy<Value = Headers> {
    let name = prop_oneof![9 => select(NAMES).prop_map(str::to_owned), 1 => fuzz::text(NAMES, &[])];
    let value = prop::option::weighted(0.95, fuzz::bytes(VALUES, &["s", "ms", ".retry.30s"]));
    vec((name, value), 0..24).prop_map(|all| {
        let mut headers = Headers::new();
        for (name, value) in all {
            match value {
                Some(value) => headers.append(name, value),
                None => headers.append_null(name),
            }
        }
        headers
    })
}

fn time() -> impl Strategy<Value = SystemTime> {
    let millis = prop_oneof![any::<i64>(), 0..4_000_000_000_000_i64, -10_000..10_000_i64];
    millis.prop_map(|millis| {
        let by = Duration::from_millis(millis.unsigned_abs());
        if millis < 0 { SystemTime::UNIX_EPOCH - by } else { SystemTime::UNIX_EPOCH + by }
    })
}

fn origin() -> impl Strategy<Value = Origin> {
    let name = fuzz::text(&["orders", "orders.placed", "mails.retry.30s", "g.retry.1500ms"], &[".retry."]);
    let log = (select(&["kafka", "memory"][..]), name, any::<u32>(), any::<u64>());
    let log = log.prop_map(|(system, topic, partition, offset)| Origin::Log {
        system,
        topic: topic.into(),
        partition,
        offset,
    });
    let queue = (select(&["orders", ""][..]), fuzz::text(&["ex"], &[]), fuzz::text(&["rk"], &[]));
    let queue = queue.prop_map(|(queue, exchange, key)| Origin::Queue {
        system: "amqp",
        queue: queue.into(),
        exchange: exchange.into(),
        routing_key: key.into(),
    });
    prop_oneof![4 => log, 4 => queue, 1 => Just(Origin::Local)]
}

fn message() -> impl Strategy<Value = Message> {
    let payload = prop::option::of(fuzz::bytes(&[r#"{"order_id":"o-17"}"#], &[]));
    let key = prop::option::of(fuzz::bytes(&["o-17"], &[]));
    (headers(), origin(), prop::option::of(time()), payload, key).prop_map(
        |(headers, origin, timestamp, payload, key)| {
            let mut message = Message::builder().headers(headers).origin(origin);
            if let Some(timestamp) = timestamp {
                message = message.timestamp(timestamp);
            }
            if let Some(payload) = payload {
                message = message.payload(payload);
            }
            if let Some(key) = key {
                message = message.key(key);
            }
            message.build()
        },
    )
}

/// Names and values, without what `Vec` and `Bytes` need around them.
fn size(message: &Message) -> usize {
    let headers: usize =
        message.headers().iter().map(|(name, value)| 64 + name.len() + value.map_or(0, Bytes::len)).sum();
    let origin = match message.origin() {
        Origin::Queue { queue, exchange, routing_key, .. } => {
            queue.len() + exchange.len() + routing_key.len()
        }
        origin => origin.name().len(),
    };
    headers + origin + message.payload().len() + message.key().map_or(0, Bytes::len)
}

fn foreign(headers: &Headers) -> Vec<(String, Option<Bytes>)> {
    const OURS: [&str; 3] = [wire::DEAD_LETTER_PREFIX, wire::RETRY_PREFIX, wire::REDRIVE_PREFIX];
    let all = headers.iter().filter(|(name, _)| !OURS.iter().any(|prefix| name.starts_with(prefix)));
    all.filter(|(name, _)| *name != wire::REDRIVEN_AT)
        .map(|(name, value)| (name.to_owned(), value.cloned()))
        .collect()
}

#[test]
fn fuzz_core_times() {
    const SAMPLES: &[&str] = &["2026-11-25T12:00:00.000Z", "2024-02-29T23:59:60Z", "30s", "1500ms"];
    Target::new("core_times").at_most(2, 256).run(
        (fuzz::text(SAMPLES, &["T", "-"]), time()),
        |meter, (text, at)| {
            if let Ok(at) = meter.parse(text.len(), || wire::parse_time(&text)) {
                let written = wire::parse_time(&wire::format_time(at)).unwrap();
                prop_assert!(at.duration_since(written).unwrap() < Duration::from_millis(1));
            }
            if let Some(delay) = meter.parse(text.len(), || wire::parse_delay(&text)) {
                let least = delay.max(Duration::from_millis(1));
                prop_assert_eq!(wire::parse_delay(&wire::format_delay(delay)), Some(least));
            }
            let written = meter.parse(0, || wire::format_time(at));
            prop_assert_eq!(written.len(), 24);
            prop_assert_eq!(wire::format_time(wire::parse_time(&written).unwrap()), written);
            Ok(())
        },
    );
}

#[test]
fn fuzz_core_headers() {
    Target::new("core_headers").at_most(32, 4096).run(message(), |meter, message| {
        let length = size(&message);
        meter.parse(length, || {
            for name in [wire::RETRY_ATTEMPT, wire::RETRY_ROUND] {
                message.retry_count(name);
            }
            message.redrive_count();
            format!("{message:?} {}", message.origin()).len()
        });
        for key in [
            IdempotencyKey::message_id(),
            IdempotencyKey::header("x-mine"),
            IdempotencyKey::cloud_event(),
            IdempotencyKey::position(),
        ] {
            let key = meter.parse(length, || key.of(&message));
            prop_assert!(key.is_err() || key.is_ok_and(|key| key.is_none_or(|key| !key.is_empty())));
        }
        Ok(())
    });
}

#[test]
fn fuzz_core_dead_letters() {
    let cause = fuzz::text(&["mailer: connection refused"], &[]);
    let input = (message(), cause, any::<u32>(), time());
    // An escape takes up to six bytes for one, and a text that grows is held as it was and as it becomes.
    Target::new("core_dead_letters").at_most(24, 16 * 1024).run(
        input,
        |meter, (message, cause, crashes, now)| {
            let failure = Failure::permanent(cause.clone());
            let length = size(&message) + cause.len();
            let set = meter.parse(length, || provenance_of(&message, &failure, crashes, Some("mails"), now));
            prop_assert!(set.get_str(wire::DEAD_LETTER_ERROR).unwrap().len() <= 4096);
            let outgoing =
                Outgoing::copy("dead", message.clone()).remove_prefix(wire::DEAD_LETTER_PREFIX).set_all(&set);
            let letter = outgoing.headers();
            prop_assert_eq!(
                foreign(&letter),
                foreign(message.headers()),
                "what is not ours stays byte for byte"
            );
            let read =
                DeadLetter::new(Place { scope: 0, seq: 0 }, Message::builder().headers(letter).build());
            prop_assert_eq!((read.reason(), read.consumer()), ("permanent", Some("mails")));
            prop_assert_eq!(read.attempts(), Some(message.attempt().saturating_add(crashes)));
            prop_assert!(read.last_failed_at().is_some() && read.is_ours());
            Ok(())
        },
    );
}

#[test]
fn fuzz_core_redrive() {
    let death =
        (fuzz::text(&["orders"], &[]), select(&["rejected", "expired"][..]), prop::option::of(time()));
    let input = (message(), prop::option::of(death), prop::option::of(Just("elsewhere")), time());
    Target::new("core_redrive").at_most(32, 8 * 1024).run(input, |meter, (message, death, to, now)| {
        // Shown for debugging, each character may be escaped.
        let length = size(&message) + death.as_ref().map_or(0, |(queue, _, _)| queue.len());
        let death = death.map(|(queue, reason, at)| {
            let death = BrokerDeath::new(queue, reason);
            if let Some(at) = at { death.at(at) } else { death }
        });
        let letter = DeadLetter::new(Place { scope: 0, seq: 0 }, message.clone()).with_death(death);
        meter.parse(length, || {
            let texts = (letter.error(), letter.id(), letter.key(), letter.origin(), letter.source());
            format!("{letter:?} {texts:?} {:?} {:?}", letter.first_failed_at(), letter.attempts()).len()
        });
        let before = letter.redrive_count();
        let Ok(outgoing) = meter.parse(length, || redriven(&letter, to.map(Into::into), now)) else {
            prop_assert!(before == u32::MAX || (to.is_none() && letter.origin().is_none()));
            return Ok(());
        };
        let headers = outgoing.headers();
        prop_assert_eq!(foreign(&headers), foreign(message.headers()));
        prop_assert!(!outgoing.target().is_empty());
        prop_assert_eq!(headers.get_all(wire::REDRIVE_COUNT).count(), 1);
        let again = Message::builder().headers(headers.clone()).build();
        prop_assert_eq!(again.redrive_count(), before + 1);
        let kept = [wire::DEAD_LETTER_PREFIX, wire::RETRY_PREFIX];
        prop_assert!(!headers.iter().any(|(name, _)| kept.iter().any(|prefix| name.starts_with(prefix))));
        Ok(())
    });
}

#[cfg(feature = "json")]
#[test]
fn fuzz_core_json() {
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "decoded, and not looked at")]
    struct Order {
        order_id: String,
        email: String,
        total: Option<u64>,
    }
    const SAMPLES: &[&str] = &[
        r#"{"order_id":"o-17","email":"ann@example.com","total":1999}"#,
        r#"{"order":{"id":17,"lines":[{"sku":"a","n":1},{"sku":"b","n":2.5e3}]},"note":"\u00fc\ud83e\udd80"}"#,
        r#"[[[["deep"]]],null,true,-0.0,1e308]"#,
    ];
    let pointers = fuzz::text(&["/order_id", "/order/lines/1/sku", "/0/0/0/0", "/a~1b~0"], &["~2", "/-"]);
    // A value takes 32 bytes and its place in a vector that doubles, for two bytes of input.
    Target::new("core_json").at_most(256, 4096).run(
        (fuzz::bytes(SAMPLES, &["~1"]), pointers),
        |meter, (payload, pointer)| {
            let message = Message::new(payload.clone());
            let length = payload.len() + pointer.len();
            let key = meter.parse(length, || IdempotencyKey::json_pointer(pointer.clone()).of(&message));
            if let Ok(Some(key)) = key {
                prop_assert!(!key.is_empty() && key.len() <= payload.len().max(32));
            }
            let order = meter.parse(length, || Json::<Order>::from_message(&message, &()));
            if let Err(failure) = order {
                let text = meter.parse(length, || failure.cause());
                prop_assert!(
                    text.contains("line") || payload.is_empty(),
                    "where it is wrong is said: {text}"
                );
                // It may quote the one scalar that is wrong, each character escaped at worst.
                prop_assert!(text.len() <= 10 * payload.len() + 200);
            }
            Ok(())
        },
    );
}
