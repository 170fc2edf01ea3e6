//! Everything here that comes from outside: URLs, headers of every type, deaths, what the broker says of a queue.

use std::time::SystemTime;

use consumer_core::{Message, Outgoing};
use fuzz::Target;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{
        AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString, generation::gen_field_table,
        parsing::parse_field_table,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    dead_letters::latest_death,
    delivery::{AmqpDelivery, Reader},
    mismatch::Mismatch,
    publisher::properties_of as properties,
    url,
};

const SECRET: &str = "hunter2-Xyzzy";

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn fuzz_amqp_url() {
    const SAMPLES: &[&str] = &[
        "amqp://rabbit",
        "amqp://guest:guest@localhost:5672/%2f",
        "amqps://ann:p%40s%3As@[::1]:1/orders%2feu?heartbeat=7&connection_timeout=1500&cacertfile=%2Fca.pem",
    ];
    Target::new("amqp_url").at_most(24, 2048).run(fuzz::text(SAMPLES, &["amqp://"]), |meter, text| {
        match meter.parse(text.len(), || url::parse(&text)) {
            Ok(connection) => {
                prop_assert!(!connection.host.is_empty() && !connection.vhost.is_empty());
                meter.parse(text.len(), || format!("{connection:?}").len());
                // With names of files it would read them.
                if connection.tls.is_none() {
                    let _ = meter.parse(text.len(), || connection.check());
                }
            }
            Err(error) => prop_assert!(error.is_config() && error.to_string().len() < 300 + text.len()),
        }
        if let Some((before, after)) = text.split_once("://")
            && let Err(error) = url::parse(&format!("{before}://ann:{SECRET}@{after}"))
        {
            prop_assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn fuzz_amqp_url_round_trip() {
    let input = (".{0,20}", ".{0,20}", ".{1,40}", "[a-z]{1,20}", any::<u16>(), 0..=u32::MAX);
    Target::new("amqp_url_round_trip").at_most(16, 2048).run(
        input,
        |meter, (user, password, vhost, host, port, heartbeat)| {
            let vhost: String = vhost.chars().take(60).collect();
            let place = format!("{host}:{port}/{}?heartbeat={heartbeat}", encoded(&vhost));
            let text = format!("amqp://{}:{}@{place}", encoded(&user), encoded(&password));
            let read = meter.parse(text.len(), || url::parse(&text)).unwrap();
            prop_assert_eq!((read.user, read.password.show()), (user, &*password));
            prop_assert_eq!((read.host, read.port, read.vhost), (host, port, vhost));
            prop_assert_eq!(read.heartbeat.as_secs(), u64::from(heartbeat));
            Ok(())
        },
    );
}

fn short() -> impl Strategy<Value = ShortString> {
    let text = fuzz::text(&["id-1", "message-id", "orders", "application/json"], &[]);
    text.prop_map(|text| ShortString::try_new(text.chars().take(60).collect::<String>()).unwrap_or_default())
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let text = || {
        fuzz::bytes(
            &["orders", "rejected", "2026-11-25T12:00:00.000Z"],
            &["expired", "delivery_limit", "q.retry.30s"],
        )
    };
    let leaf = prop_oneof![
        Just(AMQPValue::Void),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        // Not NaN, which equals nothing.
        prop::num::f32::NORMAL.prop_map(AMQPValue::Float),
        (prop::num::f64::ANY).prop_filter("not NaN", |it| !it.is_nan()).prop_map(AMQPValue::Double),
        (any::<u8>(), any::<u32>())
            .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        short().prop_map(AMQPValue::ShortString),
        text().prop_map(|text| AMQPValue::LongString(text.into())),
        text().prop_map(|text| AMQPValue::ByteArray(text.into())),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|all| AMQPValue::FieldArray(FieldArray::from(all))),
            table(inner).prop_map(AMQPValue::FieldTable),
        ]
    })
}

const NAMES: &[&str] = &[
    "queue",
    "reason",
    "time",
    "count",
    "exchange",
    "x-death",
    "x-first-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "message-id",
    "message-key",
    "correlation-id",
    "content-type",
    "retry-attempt",
    "retry-queue",
    "dead-letter-reason",
    "dead-letter-dropped",
    "redrive-count",
    "CC",
    "BCC",
    "x-mine",
    "",
];

fn table(value: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
    let name = prop_oneof![9 => select(NAMES).prop_map(ShortString::from), 1 => short()];
    vec((name, value), 0..8).prop_map(|entries| {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name, value);
        }
        table
    })
}

fn bytes_of(table: &FieldTable) -> Vec<u8> {
    gen_field_table(table)(Vec::new().into()).unwrap().write
}

fn delivered(properties: BasicProperties) -> Message {
    let mut delivery = Delivery::mock(1, "ex".into(), "rk".into(), true, b"{}".to_vec());
    delivery.properties = properties;
    Reader::new("orders").message(delivery, None)
}

fn all_properties() -> impl Strategy<Value = BasicProperties> {
    let text = || prop::option::of(short());
    let deaths = prop::option::of(vec(value(), 0..4));
    (table(value()), deaths, text(), text(), text(), text(), prop::option::of(any::<u64>())).prop_map(
        |(mut headers, deaths, id, correlation, expiration, user, timestamp)| {
            if let Some(deaths) = deaths {
                headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(deaths)));
            }
            let mut properties = BasicProperties::default().with_headers(headers);
            if let Some(id) = id {
                properties = properties.with_message_id(id);
            }
            if let Some(id) = correlation {
                properties = properties.with_correlation_id(id);
            }
            if let Some(after) = expiration {
                properties = properties.with_expiration(after);
            }
            if let Some(user) = user {
                properties = properties.with_user_id(user);
            }
            if let Some(at) = timestamp {
                properties = properties.with_timestamp(at);
            }
            properties
        },
    )
}

/// From a delivery to a message and back to a delivery: a dead letter keeps what it does not have to drop.
#[test]
fn fuzz_amqp_delivery() {
    Target::new("amqp_delivery").at_most(64, 16 * 1024).run(all_properties(), |meter, before| {
        let length = bytes_of(before.headers().as_ref().unwrap()).len();
        let message = meter.parse(length, || delivered(before.clone()));
        meter.parse(length, || format!("{:?} {message:?}", message.native::<AmqpDelivery>()).len());
        if let Some(death) = meter.parse(length, || latest_death(&before)) {
            prop_assert!((1..256).contains(&death.queue.len()) && (1..256).contains(&death.reason.len()));
        }
        let dead = Outgoing::copy("dead", message).set("dead-letter-reason", "permanent");
        let after = meter.parse(2 * length, || properties(&dead)).unwrap();
        let (was, is) = (before.headers().clone().unwrap(), after.headers().clone().unwrap());
        let set = ["dead-letter-reason", "dead-letter-dropped", "x-delivery-count", "CC", "BCC"];
        for (name, value) in was.inner() {
            let is_empty = matches!(value, AMQPValue::FieldArray(all) if all.as_slice().is_empty());
            let is_ours =
                ["dead-letter-", "retry-", "redrive-"].iter().any(|it| name.as_str().starts_with(it));
            let may_go = set.contains(&name.as_str()) || is_empty && is_ours;
            if !may_go {
                prop_assert_eq!(is.inner().get(name.as_str()), Some(value), "{}", name);
            }
        }
        prop_assert!(after.expiration().is_none() && after.user_id().is_none());
        prop_assert_eq!(after.correlation_id(), before.correlation_id());
        prop_assert_eq!(after.timestamp(), before.timestamp());
        Ok(())
    });
}

/// From the bytes of a frame: what the driver takes for a table, we can read.
#[test]
fn fuzz_amqp_table_bytes() {
    let input = (table(value()), vec((any::<prop::sample::Index>(), any::<u8>()), 0..6));
    Target::new("amqp_table_bytes").at_most(256, 16 * 1024).run(input, |meter, (table, changes)| {
        let mut bytes = bytes_of(&table);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let parsed = meter.parse(bytes.len(), || parse_field_table(&bytes[..]).map(|(_, table)| table));
        if let Ok(table) = parsed {
            let properties = BasicProperties::default().with_headers(table);
            meter.parse(bytes.len(), || delivered(properties.clone()));
            meter.parse(bytes.len(), || latest_death(&properties));
        }
        Ok(())
    });
}

#[test]
fn fuzz_amqp_mismatch() {
    const SAMPLES: &[&str] = &[
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received none but current is the value 'quorum' of type 'longstr'",
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
        "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the value '1000' of type 'signedint' but current is the value '5' of type 'long'",
    ];
    const WORDS: &[&str] =
        &["'", "inequivalent arg '", ": received ", " but current is ", "the value '", "' of type '", "none"];
    let asked = prop::option::of(prop_oneof![
        Just(AMQPValue::LongLongInt(7)),
        Just(AMQPValue::Boolean(true)),
        Just(AMQPValue::LongString("a".into()))
    ]);
    Target::new("amqp_mismatch").run((fuzz::text(SAMPLES, WORDS), asked), |meter, (text, asked)| {
        meter.parse(text.len(), || {
            let Some(mismatch) = Mismatch::parse(&text) else { return };
            let _ = (mismatch.is_serious(), mismatch.breaks_order(), mismatch.current_flag());
            mismatch.current(asked.as_ref());
            assert!(mismatch.to_string().len() <= text.len() + 32);
        });
        Ok(())
    });
}

#[test]
fn fuzz_amqp_timestamps() {
    Target::new("amqp_timestamps").run(any::<u64>(), |meter, seconds| {
        let message = meter.parse(0, || delivered(BasicProperties::default().with_timestamp(seconds)));
        let at = message.timestamp().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        prop_assert!(at.is_none_or(|at| at.as_secs() == seconds));
        Ok(())
    });
}

/// The driver's own parser overflows its stack at about 1,400 levels: see docs/fuzz.md.
#[test]
fn headers_that_are_nested_deep_are_shown_in_part_and_kept_whole() {
    let mut value = AMQPValue::LongInt(1);
    for level in 0..1400 {
        value = if level % 2 == 0 {
            AMQPValue::FieldArray(FieldArray::from(vec![value]))
        } else {
            let mut table = FieldTable::default();
            table.insert("t".into(), value);
            AMQPValue::FieldTable(table)
        };
    }
    let mut table = FieldTable::default();
    table.insert("deep".into(), value);
    let before = BasicProperties::default().with_headers(table);
    let message = delivered(before.clone());
    let shown = message.headers().get_str("deep").unwrap();
    assert!(shown.contains("…") && shown.len() < 1000, "{shown}");
    let after = properties(&Outgoing::copy("dead", message).set("dead-letter-reason", "permanent")).unwrap();
    let deep =
        |properties: &BasicProperties| properties.headers().clone().unwrap().inner().get("deep").cloned();
    assert_eq!(deep(&after), deep(&before));
}
