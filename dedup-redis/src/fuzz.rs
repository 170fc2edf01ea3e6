//! Everything here that comes from outside: what is stored in Redis, what servers answer, URLs.

use std::time::Duration;

use bytes::Bytes;
use consumer_core::dedup::{
    ClaimReply, ClaimRequest, Mode, Owner, ParkOperation, ParkRequest, Resolution, StoreKey,
    protocol::{Numbers, State},
};
use fuzz::Target;
use proptest::{collection::vec, prelude::*, sample::select};
use redis::Value;

use crate::{
    builder::EvictionCheck,
    cluster::read_map,
    connection::{Settings, Tls},
    format::Record,
    greeting::{inspect, parse_time},
    operation::{claimed, read_claim, read_resolution},
    parking,
    target::Target as Url,
};

const SECRET: &str = "hunter2-Xyzzy";

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn settings(url: &str) -> Settings {
    Settings {
        target: Url::parse(url).unwrap(),
        tls: Tls::default(),
        sentinel_user: None,
        sentinel_password: None,
        name: None,
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(1),
        eviction: EvictionCheck::Refuse,
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    (any::<u64>(), any::<u32>(), any::<u32>(), any::<bool>(), any::<Option<u128>>(), any::<u32>()).prop_map(
        |(epoch, attempts, crashes, suspect, fingerprint, redrive)| Numbers {
            epoch,
            attempts,
            crashes,
            suspect,
            fingerprint,
            redrive,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let mode = select(&[Mode::Normal, Mode::Suspect, Mode::Alone][..]);
    prop_oneof![
        any::<Option<u128>>().prop_map(|fingerprint| Record::Completed { fingerprint }),
        (any::<u128>(), any::<u64>(), mode, numbers(), any::<u64>()).prop_map(
            |(process, seq, mode, numbers, grace_ms)| {
                let owner = Owner { process, seq };
                Record::Claimed { owner, mode, numbers, grace_ms }
            }
        ),
        numbers().prop_map(Record::Released),
        (any::<u32>(), numbers()).prop_map(|(attempt, numbers)| Record::Deferred { attempt, numbers }),
        numbers().prop_map(Record::DeadLettered),
    ]
}

/// Bytes of a record with some of them changed, cut, or added; or noise.
fn stored() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..10_u8);
    let changed = (record(), vec(change, 0..4)).prop_map(|(record, changes)| {
        let mut bytes = record.to_bytes();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len() + 1);
            match kind {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => {}
            }
        }
        bytes
    });
    prop_oneof![8 => changed, 1 => vec(any::<u8>(), 0..100)]
}

#[test]
fn fuzz_redis_values() {
    Target::new("redis_values").at_most(0, 256).run(
        (stored(), record(), any::<u64>(), any::<u64>()),
        |meter, (bytes, record, now, ttl)| {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
            match meter.parse(bytes.len(), || Record::from_bytes(&bytes)) {
                Ok(read) => {
                    // A flag that means nothing is not kept; everything else is.
                    prop_assert_eq!(Record::from_bytes(&read.to_bytes()), Ok(read));
                    prop_assert_eq!(read.to_bytes().len(), bytes.len());
                    if let State::Claimed(claimed) = meter.parse(bytes.len(), || read.to_state(now, ttl)) {
                        prop_assert!(claimed.lease_until <= now.saturating_add(ttl));
                    }
                }
                Err(error) => {
                    let text = meter.parse(bytes.len(), || error.to_string());
                    prop_assert!(text.len() < 100);
                }
            }
            Ok(())
        },
    );
}

/// What a server may answer, in either protocol; the driver lets nothing be nested deeper than 100.
fn answer() -> impl Strategy<Value = Value> {
    const INFO: &[&str] = &[
        "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:4cd8\r\n",
        "# Memory\r\nmaxmemory:52428800\r\nmaxmemory_policy:allkeys-lru\r\n",
        "# Replication\r\nrole:slave\r\n",
        "1700000000",
        "123456",
    ];
    let number = prop_oneof![-5..5_i64, any::<i64>()];
    let leaf = prop_oneof![
        Just(Value::Nil),
        Just(Value::Okay),
        number.prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        any::<bool>().prop_map(Value::Boolean),
        stored().prop_map(Value::BulkString),
        fuzz::bytes(INFO, &["redis_version:", "6.2", "cluster", "sentinel"]).prop_map(Value::BulkString),
        fuzz::text(INFO, &[]).prop_map(Value::SimpleString),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec(inner.clone(), 0..4).prop_map(Value::Set),
            vec((inner.clone(), inner), 0..3).prop_map(Value::Map),
        ]
    })
}

fn size(value: &Value) -> usize {
    64 + match value {
        Value::BulkString(bytes) => bytes.len(),
        Value::SimpleString(text) => text.len(),
        Value::Array(all) | Value::Set(all) => all.iter().map(size).sum(),
        Value::Map(all) => all.iter().map(|(key, value)| size(key) + size(value)).sum(),
        _ => 0,
    }
}

#[test]
fn fuzz_redis_greeting() {
    let settings = ["redis://h:1", "redis+sentinel://h:1/mymaster", "redis+cluster://h:1"].map(settings);
    let input = (answer(), answer(), answer(), answer(), 0..3_usize);
    Target::new("redis_greeting").run(input, |meter, (server, memory, replication, time, which)| {
        let length = size(&server) + size(&memory) + size(&replication);
        let replies = [Ok(server), Ok(memory), Ok(replication)];
        if let Err(error) = meter.parse(length, || inspect(replies, &settings[which])) {
            prop_assert!(error.to_string().len() < length + 200);
        }
        meter.parse(size(&time), || parse_time(&time));
        Ok(())
    });
}

#[test]
fn fuzz_redis_cluster_map() {
    let number = || prop_oneof![6 => 0..=16_383_i64, 1 => -1..=16_385_i64, 1 => any::<i64>()];
    let host = fuzz::bytes(&["127.0.0.1", "redis-1.example", ""], &[]);
    let node = (host, prop_oneof![4 => 1..=65_535_i64, 1 => any::<i64>()])
        .prop_map(|(host, port)| Value::Array(vec![Value::BulkString(host), Value::Int(port)]));
    let part = prop_oneof![12 => node, 1 => answer()];
    let range = (number(), number(), vec(part, 0..3)).prop_map(|(first, last, nodes)| {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    });
    let map = prop_oneof![9 => vec(range, 0..6).prop_map(Value::Array), 1 => answer()];
    // A number of two bytes for each slot.
    Target::new("redis_cluster_map").at_most(8, 40 * 1024).run(map, |meter, map| {
        if let Some((addresses, slots)) = meter.parse(size(&map), || read_map(&map, "seed")) {
            prop_assert!(!addresses.is_empty() && slots.len() == 16_384);
            let known = |slot: &u16| *slot == u16::MAX || usize::from(*slot) < addresses.len();
            prop_assert!(slots.iter().all(known));
        }
        Ok(())
    });
}

#[test]
fn fuzz_redis_replies() {
    let key = || StoreKey::new("mails".into(), Bytes::from_static(b"o-17"));
    let fingerprint = any::<Option<u128>>();
    let resolution =
        select(&[Resolution::Completed, Resolution::DeadLettered, Resolution::Failed { attempts: 2 }][..]);
    let park = select(vec![
        ParkOperation::Enter { limit: 7 },
        ParkOperation::Defer { wait: Duration::from_secs(30) },
        ParkOperation::Leave,
    ]);
    let input = (answer(), fingerprint, any::<bool>(), any::<u64>(), resolution, park);
    Target::new("redis_replies").run(
        input,
        |meter, (value, fingerprint, contested, epoch, resolution, operation)| {
            let request = ClaimRequest {
                key: key(),
                owner: Owner { process: 1, seq: 1 },
                fingerprint,
                lease: Duration::from_secs(30),
                grace: Duration::from_secs(3600),
                attempt: 1,
                redrive: 0,
            };
            let length = size(&value);
            let reply = meter.parse(length, || read_claim(&request, contested, epoch, &value));
            if let Ok(Some(ClaimReply::Claimed(claim))) = &reply {
                prop_assert_eq!((&claim.key, claim.owner), (&request.key, request.owner));
                // Only an answer that says so gives the key away.
                let is_ours = match &value {
                    Value::Nil => !contested,
                    Value::BulkString(bytes) => {
                        contested && matches!(Record::from_bytes(bytes), Ok(Record::Claimed { .. }))
                    }
                    _ => false,
                };
                prop_assert!(is_ours, "{value:?}");
            }
            let ClaimReply::Claimed(claim) = claimed(
                &request,
                &Numbers { epoch, attempts: 0, crashes: 0, suspect: false, fingerprint, redrive: 0 },
                false,
            ) else {
                return Err(TestCaseError::fail("a claim"));
            };
            let _ = meter.parse(length, || read_resolution(&claim, resolution, &value));
            let park = ParkRequest { key: key(), id: 1, operation, lifetime: Duration::from_secs(1) };
            let _ = meter.parse(length, || parking::read(&park, contested, &value));
            Ok(())
        },
    );
}

#[test]
fn fuzz_redis_url() {
    const SAMPLES: &[&str] = &[
        "redis://localhost",
        "rediss://ann:p%40ss%2Fw%25:rd@[::1]:7000/3",
        "redis+sentinel://a,b:7/mymaster/2",
        "rediss+cluster://a:1,b:2",
    ];
    Target::new("redis_url").at_most(64, 2048).run(
        fuzz::text(SAMPLES, &["redis+", "mymaster"]),
        |meter, text| {
            match meter.parse(text.len(), || Url::parse(&text)) {
                Ok(url) => {
                    prop_assert!(!url.hosts.is_empty());
                    let shown = meter.parse(text.len(), || format!("{url} {url:?}"));
                    let password = url.password.filter(|it| it.len() > 6);
                    prop_assert!(
                        password.is_none_or(|it| !shown.contains(&it) || url.hosts[0].0.contains(&it))
                    );
                }
                Err(error) => prop_assert!(error.is_configuration() && error.to_string().len() < 200),
            }
            if let Some((before, after)) = text.split_once("://")
                && let Err(error) = Url::parse(&format!("{before}://ann:{SECRET}@{after}"))
            {
                prop_assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
            }
            Ok(())
        },
    );
}

#[test]
fn fuzz_redis_url_round_trip() {
    let input = (".{0,20}", ".{0,20}", "[a-z]{1,20}", any::<u16>(), any::<u32>());
    Target::new("redis_url_round_trip").at_most(64, 2048).run(
        input,
        |meter, (user, password, host, port, database)| {
            let text = format!("redis://{}:{}@{host}:{port}/{database}", encoded(&user), encoded(&password));
            let url = meter.parse(text.len(), || Url::parse(&text)).unwrap();
            prop_assert_eq!(url.hosts, [(host, port)]);
            prop_assert_eq!(
                (url.user.unwrap_or_default(), url.password.unwrap_or_default()),
                (user, password)
            );
            prop_assert_eq!(url.database, i64::from(database));
            Ok(())
        },
    );
}
