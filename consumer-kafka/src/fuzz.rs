//! Everything here that comes from outside: URLs, properties, records of a settled topic, headers, retry headers.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use consumer_core::{
    Message,
    dead_letters::{Place, Settled},
};
use fuzz::Target;
use proptest::{collection::vec, prelude::*, sample::select};
use rdkafka::{
    message::{Header, OwnedHeaders},
    types::RDKafkaType,
};

use crate::{
    GroupProtocol,
    config::{CONSUMER_DEFAULTS, Connection, refused_for_consumer, refused_for_publisher, validate},
    convert::{name, read_headers},
    dead_letters::marks::{Marks, mark, tombstone},
    retry::{RetryTopics, waiting},
    url,
};

const SECRET: &str = "hunter2-Xyzzy";

/// As everybody encodes them who is careful.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn fuzz_kafka_url() {
    const SAMPLES: &[&str] = &[
        "kafka://localhost:9092",
        "kafka://a:9092,b:9093,[::1]:9094/",
        "kafka+tls://ann:p%40s%3As@h:9092?sasl.mechanism=SCRAM-SHA-256&ssl.ca.location=%2Fca.pem",
        "kafka+tls://h:9092?ssl.certificate.pem=x&client.id=orders",
    ];
    Target::new("kafka_url").at_most(24, 2048).run(
        fuzz::text(SAMPLES, &["kafka://", "sasl."]),
        |meter, text| {
            let connection = meter.parse(text.len(), || url::parse(&text));
            match connection {
                Ok(connection) => {
                    prop_assert!(!connection.brokers().is_empty());
                    meter.parse(text.len(), || format!("{connection:?}").len());
                }
                Err(error) => prop_assert!(error.is_config() && error.to_string().len() < 300 + text.len()),
            }
            // Wherever the mistake is, a password is not shown.
            if let Some((before, after)) = text.split_once("://") {
                let with = format!("{before}://ann:{SECRET}@{after}");
                if let Err(error) = url::parse(&with) {
                    prop_assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
                }
            }
            Ok(())
        },
    );
}

#[test]
fn fuzz_kafka_url_round_trip() {
    let any = || ".{0,20}";
    let property = ("[a-z.]{1,20}", any()).prop_filter("is said by the scheme", |(name, _)| {
        name != "security.protocol" && !name.starts_with("sasl.")
    });
    let input = (any(), any(), vec(property, 0..4), vec("[a-z]{1,10}:[1-9][0-9]{0,3}", 1..4));
    Target::new("kafka_url_round_trip").at_most(16, 4096).run(
        input,
        |meter, (user, password, properties, hosts)| {
            let query: Vec<_> = properties
                .iter()
                .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
                .collect();
            let hosts = hosts.join(",");
            let text =
                format!("kafka://{}:{}@{hosts}?{}", encoded(&user), encoded(&password), query.join("&"));
            let connection = meter.parse(text.len(), || url::parse(&text)).unwrap();
            prop_assert_eq!(connection.brokers(), hosts);
            prop_assert_eq!(connection.get("sasl.username"), Some(&*user));
            prop_assert_eq!(connection.get("sasl.password"), Some(&*password));
            let mut expected = Connection::new("");
            for (name, value) in &properties {
                expected.put(name, value);
            }
            for name in expected.names() {
                prop_assert_eq!(connection.get(name), expected.get(name));
            }
            Ok(())
        },
    );
}

/// The driver checks them, in C: what it holds is not measured.
#[test]
fn fuzz_kafka_properties() {
    const NAMES: &[&str] = &[
        "client.id",
        "session.timeout.ms",
        "fetch.max.bytes",
        "sasl.password",
        "ssl.key.password",
        "ssl.ca.pem",
        "debug",
        "auto.offset.reset",
        "queued.max.messages.kbytes",
        "partition.assignment.strategy",
        "linger.ms",
        "group.protocol",
    ];
    let value = fuzz::text(&["1000", "all", "true", "range,roundrobin"], &["hunter2-Xyzzy"]);
    let input = vec(
        (prop_oneof![4 => select(NAMES).prop_map(str::to_owned), 1 => fuzz::text(NAMES, &[])], value),
        0..4,
    );
    Target::new("kafka_properties").at_most(0, 0).run(input, |meter, properties| {
        let length = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        meter.parse(length, || {
            for (name, _) in &properties {
                let _ = (refused_for_consumer(name, GroupProtocol::Classic), refused_for_publisher(name));
            }
        });
        let mut connection = Connection::new("h:1");
        for (name, value) in properties {
            connection.put(name, value);
        }
        let config = connection.config(CONSUMER_DEFAULTS);
        if let Err(error) = validate(&config, RDKafkaType::RD_KAFKA_CONSUMER) {
            prop_assert!(error.is_config());
            for name in ["sasl.password", "ssl.key.password"] {
                let secret = connection.get(name).filter(|value| value.contains(SECRET));
                prop_assert!(secret.is_none_or(|_| !error.to_string().contains(SECRET)), "{error}");
            }
        }
        Ok(())
    });
}

#[test]
fn fuzz_kafka_settled_records() {
    const KEYS: &[&str] = &["3@17", "0@0", "18446744073709551615@18446744073709551615"];
    const VALUES: &[&str] = &[
        r#"{"settled":"redriven","at":"2026-11-25T12:00:00.000Z","letter_timestamp":1700000000042}"#,
        r#"{"settled":"discarded","at":"1970-01-01T00:00:00.000Z","letter_timestamp":-1}"#,
    ];
    let key = prop::option::weighted(0.95, fuzz::bytes(KEYS, &["@"]));
    let value = prop::option::weighted(0.9, fuzz::bytes(VALUES, &["settled"]));
    let records = vec((key, value), 1..4);
    let place = (any::<u64>(), any::<u64>()).prop_map(|(scope, seq)| Place { scope, seq });
    Target::new("kafka_settled_records").at_most(256, 8192).run(
        (records, place, any::<i64>()),
        |meter, (records, place, timestamp)| {
            let mut marks = Marks::default();
            for (key, value) in &records {
                let length = key.as_ref().map_or(0, Vec::len) + value.as_ref().map_or(0, Vec::len);
                let understood = meter.parse(length, || marks.read(key.as_deref(), value.as_deref()));
                prop_assert!(!understood || key.is_some());
            }
            let written = mark(place, timestamp, Settled::Redriven, SystemTime::UNIX_EPOCH);
            let key = written.key().map(|key| &key[..]);
            prop_assert!(marks.read(key, Some(written.payload())) && marks.hides(place, timestamp));
            prop_assert!(marks.read(tombstone(place).key().map(|key| &key[..]), None));
            prop_assert!(!marks.hides(place, timestamp));
            Ok(())
        },
    );
}

#[test]
fn fuzz_kafka_headers() {
    let header_name = fuzz::text(&["message-id", "traceparent", "x-mine"], &[]);
    let value = prop::option::of(fuzz::bytes(&["id-1"], &[]));
    Target::new("kafka_headers").run(vec((header_name, value), 0..12), |meter, all| {
        // The driver takes names as C does: up to the first zero.
        let all: Vec<_> = all.into_iter().map(|(name, value)| (name.replace('\0', ""), value)).collect();
        let from = all.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_ref() })
        });
        let length =
            all.iter().map(|(name, value)| 64 + name.len() + value.as_ref().map_or(0, Vec::len)).sum();
        let (headers, unreadable) =
            meter.parse(length, || read_headers(from.as_borrowed(), &mut Bytes::copy_from_slice));
        let read: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_owned(), value.map(|value| value.to_vec())))
            .collect();
        prop_assert_eq!(read, all.clone());
        prop_assert!(unreadable.is_empty());
        prop_assert!(all.iter().all(|(text, _)| name(text).as_str() == text));
        Ok(())
    });
}

#[test]
fn fuzz_kafka_retry_headers() {
    let header = fuzz::bytes(&["2026-11-25T12:00:00.000Z", "9999-12-31T23:59:59.999Z"], &["T"]);
    let time = || prop_oneof![0..=u64::MAX / 1000, 1_700_000_000_000..1_900_000_000_000_u64].prop_map(at);
    let delay = prop_oneof![0..100_000_u64, any::<u64>()].prop_map(Duration::from_millis);
    let group = fuzz::text(&["mails", "order-mails"], &[".retry.30s"]);
    let input = (header, prop::option::of(time()), delay, time(), group, vec(any::<u64>(), 0..4));
    Target::new("kafka_retry_headers").run(input, |meter, (header, timestamp, delay, now, group, delays)| {
        let mut message = Message::builder().header("retry-not-before", header.clone());
        if let Some(timestamp) = timestamp {
            message = message.timestamp(timestamp);
        }
        let message = message.build();
        let wait = meter.parse(header.len(), || waiting::wait(&message, delay, now));
        prop_assert!(wait <= delay, "a header holds nothing up for longer than the delay");
        let delays: Vec<_> = delays.into_iter().map(Duration::from_millis).collect();
        let length = group.len() * (delays.len() + 1);
        let topics = meter.parse(length, || RetryTopics::new(&group, None, &delays));
        if let Ok(topics) = topics {
            for topic in topics.iter() {
                prop_assert!(topics.is_own(&topic.name));
            }
        }
        Ok(())
    });
}

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}
