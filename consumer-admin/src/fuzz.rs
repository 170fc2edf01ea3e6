//! Everything the library reads from outside: exported letters, filters against letters, URLs.

use std::time::{Duration, SystemTime};

use consumer_core::{
    Headers, Message,
    dead_letters::{BrokerDeath, DeadLetter, Place},
};
use fuzz::Target;
use proptest::{collection::vec, prelude::*};

use crate::{Broker, Database, ExportedLetter, Filter, Stats};

const SECRET: &str = "hunter2-Xyzzy";

fn letter() -> impl Strategy<Value = DeadLetter> {
    const NAMES: &[&str] = &[
        "message-id",
        "dead-letter-reason",
        "dead-letter-error",
        "dead-letter-topic",
        "dead-letter-last-failed-at",
        "redrive-count",
        "x-mine",
    ];
    const VALUES: &[&str] =
        &["id-1", "permanent", "card declined: 402", "orders", "2026-11-25T12:00:00.000Z", "7"];
    let value = prop::option::weighted(0.95, fuzz::bytes(VALUES, &[]));
    let name =
        prop_oneof![9 => prop::sample::select(NAMES).prop_map(str::to_owned), 1 => fuzz::text(NAMES, &[])];
    let bytes = || prop::option::of(fuzz::bytes(&["o-17", r#"{"order_id":"o-17"}"#], &[]));
    let death = prop::option::of((fuzz::text(&["orders"], &[]), any::<u64>()));
    (vec((name, value), 0..10), bytes(), bytes(), death, any::<(u64, u64)>(), any::<u64>()).prop_map(
        |(all, key, payload, death, (scope, seq), millis)| {
            let mut headers = Headers::new();
            for (name, value) in all {
                match value {
                    Some(value) => headers.append(name, value),
                    None => headers.append_null(name),
                }
            }
            let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let mut message = Message::builder().headers(headers).timestamp(at(millis));
            if let Some(key) = key {
                message = message.key(key);
            }
            if let Some(payload) = payload {
                message = message.payload(payload);
            }
            let death = death.map(|(queue, millis)| BrokerDeath::new(queue, "rejected").at(at(millis)));
            DeadLetter::new(Place { scope, seq }, message.build()).with_death(death)
        },
    )
}

fn size(letter: &DeadLetter) -> usize {
    let message = letter.message();
    let header =
        |(name, value): (&str, Option<&bytes::Bytes>)| 64 + name.len() + value.map_or(0, |it| it.len());
    let headers: usize = message.headers().iter().map(header).sum();
    let death = letter.death().map_or(0, |death| 3 * death.queue.len() + 300);
    headers + death + message.payload().len() + message.key().map_or(0, |key| key.len())
}

/// A letter that is exported and imported is the letter it was.
#[test]
fn fuzz_admin_export() {
    Target::new("admin_export").at_most(32, 8192).run(letter(), |meter, letter| {
        let length = size(&letter);
        let mut line = Vec::new();
        meter.parse(length, || ExportedLetter::new(&letter).write_to(&mut line)).unwrap();
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one letter is one line");
        let read: ExportedLetter = meter.parse(line.len(), || serde_json::from_slice(&line)).unwrap();
        let (was, is) = (letter.message(), read.message().unwrap());
        prop_assert_eq!(
            (is.key(), is.payload(), is.is_tombstone()),
            (was.key(), was.payload(), was.is_tombstone())
        );
        let original = is.headers().iter().take(was.headers().len());
        prop_assert!(original.eq(was.headers().iter()));
        Ok(())
    });
}

#[test]
fn fuzz_admin_import() {
    const LINES: &[&str] = &[
        r#"{"place":"0@17","key":"by0xNw==","headers":[{"name":"message-id","value":"id-1"},{"name":"x","base64":"/wA="},{"name":"n"}],"payload":"e30="}"#,
        r#"{"id":"id-1","headers":[],"payload":null,"discarded_at":"2026-11-25T12:00:00.000Z","discarded_because":"tests"}"#,
    ];
    Target::new("admin_import").at_most(64, 4096).run(
        fuzz::text(LINES, &["base64", "headers"]),
        |meter, line| {
            let letter = meter.parse(line.len(), || serde_json::from_str::<ExportedLetter>(&line));
            match letter {
                Ok(letter) => {
                    if let Err(error) = meter.parse(line.len(), || letter.message()) {
                        prop_assert!(error.to_string().ends_with("is no base64"));
                    }
                }
                Err(error) => prop_assert!(error.to_string().contains("line ")),
            }
            Ok(())
        },
    );
}

#[test]
fn fuzz_admin_filters() {
    let text = || prop::option::of(fuzz::text(&["permanent", "declined", "o-17"], &[]));
    let input = (vec(letter(), 0..4), text(), text(), text(), any::<u64>());
    Target::new("admin_filters").at_most(32, 16 * 1024).run(
        input,
        |meter, (letters, reason, error, key, millis)| {
            let mut filter = Filter::default().since(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            for (text, set) in [
                (reason, Filter::reason as fn(Filter, String) -> Filter),
                (error, Filter::error),
                (key, Filter::key),
            ] {
                if let Some(text) = text {
                    filter = set(filter, text);
                }
            }
            let length = letters.iter().map(size).sum();
            let mut stats = Stats::default();
            meter.parse(length, || {
                for letter in &letters {
                    prop_assert!(Filter::default().fits(letter));
                    filter.fits(letter);
                    stats.add(letter);
                }
                Ok(())
            })?;
            prop_assert_eq!(stats.total(), letters.len() as u64);
            Ok(())
        },
    );
}

#[test]
fn fuzz_admin_urls() {
    const SAMPLES: &[&str] = &[
        "postgres://ann:secret@localhost:5432/orders?sslmode=verify-full&application_name=x",
        "sqlite:orders.db",
        "sqlite://orders.db?mode=rwc",
        "kafka://h:9092",
        "amqp://guest:guest@h:5672/%2f",
    ];
    Target::new("admin_urls").at_most(64, 64 * 1024).run(
        fuzz::text(SAMPLES, &["sslmode=", "mode="]),
        |meter, text| {
            let _ = meter.parse(text.len(), || {
                Database::from_url(&text, None, None).map(|it| format!("{it:?}").len())
            });
            let _ = meter.parse(text.len(), || {
                let broker = Broker::from_url(&*text)?;
                broker.dead_letters("orders.dead").map(|_| format!("{broker:?}").len())
            });
            if let Some((before, after)) = text.split_once("://") {
                let with = format!("{before}://ann:{SECRET}@{after}");
                let database = Database::from_url(&with, None, None);
                let shown = database.map_or_else(|error| error.chain(), |it| format!("{it:?}"));
                prop_assert!(before.starts_with("sqlite") || !shown.contains(SECRET), "{shown}");
            }
            Ok(())
        },
    );
}
