//! Everything here that comes from outside: rows of the outbox that other programs wrote, rows of the dedup store, names.

use consumer_core::{
    Headers,
    dedup::{
        Mode, Owner,
        parking::Parked,
        protocol::{Claimed, Numbers, State},
    },
    message::wire,
};
use fuzz::Target;
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    Tables,
    admin::time,
    dedup::record::{Columns, Kept, ids, parked},
    outbox::{
        headers::{read, write},
        row::{NewRow, Row},
    },
};

const HEADERS: &[&str] = &[
    r#"[["tenant","t-1"],["raw",{"base64":"/wA="}],["none",null],["tries",3],["ok",true]]"#,
    r#"{"tenant":"t-1","tries":3,"raw":{"base64":"/wA="},"none":null}"#,
    "[]",
    "{}",
];

#[test]
fn fuzz_sql_outbox_headers() {
    let name = fuzz::text(&["message-id", "x-mine"], &[]);
    let value = prop::option::weighted(0.9, fuzz::bytes(&["t-1"], &[]));
    let headers = vec((name, value), 0..12);
    // A value of JSON takes 32 bytes and its place in a vector that doubles, for two bytes of input.
    let target = Target::new("sql_outbox_headers").at_most(256, 4096);
    target.run((fuzz::text(HEADERS, &["base64"]), headers), |meter, (text, all)| {
        match meter.parse(text.len(), || read(&text)) {
            Ok(headers) => {
                let again = write(&headers);
                prop_assert_eq!(read(&again).map(|it| it == headers), Ok(true));
            }
            Err(why) => {
                prop_assert!(why.starts_with("the headers cannot be read: ") && why.len() < 300 + text.len());
            }
        }
        let mut headers = Headers::new();
        for (name, value) in all {
            match value {
                Some(value) => headers.append(name, value),
                None => headers.append_null(name),
            }
        }
        let written = write(&headers);
        prop_assert_eq!(meter.parse(written.len(), || read(&written)).map(|it| it == headers), Ok(true));
        Ok(())
    });
}

#[test]
fn fuzz_sql_outbox_rows() {
    let text = || fuzz::text(&["orders.placed", "0192d3a1-5c1e-7aaa-8000-3f0e5d6b7c8d", ""], &[]);
    let bytes = || prop::option::of(fuzz::bytes(&["o-17"], &[]));
    let input = (text(), text(), bytes(), fuzz::text(HEADERS, &["message-id"]), bytes());
    let target = Target::new("sql_outbox_rows").at_most(256, 4096);
    target.run(input, |meter, (destination, message_id, message_key, headers, payload)| {
        let bytes = message_key.as_ref().map_or(0, Vec::len) + payload.as_ref().map_or(0, Vec::len);
        let length = destination.len() + message_id.len() + headers.len() + bytes;
        let row = Row {
            id: 1,
            message: Ok(NewRow {
                destination: destination.clone(),
                message_id: message_id.clone(),
                message_key: message_key.clone(),
                headers,
                payload: payload.clone(),
            }),
            attempts: 0,
            had_failed: false,
        };
        if let Ok(outgoing) = meter.parse(length, || row.outgoing()) {
            let message = outgoing.message();
            prop_assert_eq!(outgoing.target(), destination);
            prop_assert_eq!(message.id().map(|id| &id[..]), Some(message_id.as_bytes()), "that of the row");
            prop_assert_eq!(message.key().map(|key| key.to_vec()), message_key);
            prop_assert_eq!((!message.is_tombstone()).then(|| message.payload().to_vec()), payload);
        }
        Ok(())
    });
}

fn columns() -> impl Strategy<Value = Columns> {
    let number = || prop_oneof![-2..10_i64, any::<i64>()];
    let bytes =
        |length| prop::option::of(prop_oneof![4 => vec(any::<u8>(), length), 1 => vec(any::<u8>(), 0..40)]);
    let small = || prop_oneof![-1..8_i16, any::<i16>()];
    let first = (small(), number(), bytes(16), number(), number(), number(), any::<bool>(), number());
    let second =
        (bytes(24), prop::option::of(number()), prop::option::of(small()), prop::option::of(number()));
    (first, second).prop_map(
        |(
            (state, expires_at, fingerprint, epoch, attempts, crashes, suspect, redrive),
            (owner, lease_until, mode, attempt),
        )| Columns {
            state,
            expires_at,
            fingerprint,
            epoch,
            attempts,
            crashes,
            suspect,
            redrive,
            owner,
            lease_until,
            mode,
            attempt,
        },
    )
}

fn kept() -> impl Strategy<Value = Kept> {
    // The databases' integers have a sign.
    let time = || 0..=i64::MAX.unsigned_abs();
    let numbers = (time(), any::<u32>(), any::<u32>(), any::<bool>(), any::<Option<u128>>(), any::<u32>());
    let numbers = numbers.prop_map(|(epoch, attempts, crashes, suspect, fingerprint, redrive)| Numbers {
        epoch,
        attempts,
        crashes,
        suspect,
        fingerprint,
        redrive,
    });
    let mode = select(&[Mode::Normal, Mode::Suspect, Mode::Alone][..]);
    (0..5_u8, numbers, mode, any::<u128>(), any::<u64>(), time(), time(), any::<u32>()).prop_map(
        |(which, numbers, mode, process, seq, lease_until, expires_at, attempt)| {
            let state = match which {
                0 => State::Claimed(Claimed { owner: Owner { process, seq }, lease_until, mode, numbers }),
                1 => State::Completed { fingerprint: numbers.fingerprint },
                2 => State::Released(numbers),
                3 => State::Deferred { attempt, numbers },
                _ => State::DeadLettered(numbers),
            };
            Kept { state, expires_at }
        },
    )
}

#[test]
fn fuzz_sql_dedup_rows() {
    let input =
        (columns(), kept(), vec(any::<u8>(), 0..100), vec(any::<u128>(), 0..8), any::<i64>(), any::<i64>());
    Target::new("sql_dedup_rows").run(input, |meter, (columns, kept, bytes, keys, until, expires_at)| {
        let read = meter.parse(100, || columns.kept());
        prop_assert!(read.is_ok() || read.is_err_and(|why| why.len() < 100));
        prop_assert_eq!(Columns::of(&kept).kept(), Ok(kept));
        let read = meter.parse(bytes.len(), || parked(&bytes, until, expires_at));
        prop_assert_eq!(read.is_ok(), bytes.len() % 16 == 0);
        if let Ok(read) = read {
            prop_assert_eq!(ids(&read), bytes);
        }
        let list = Parked { ids: keys, until: until.unsigned_abs() / 2, expires_at: 1 };
        prop_assert_eq!(parked(&ids(&list), i64::try_from(list.until).unwrap(), 1), Ok(list));
        // Whatever an operator's row says, it can be shown.
        prop_assert_eq!(meter.parse(0, || wire::format_time(time(until))).len(), 24);
        Ok(())
    });
}

#[test]
fn fuzz_sql_names() {
    const NAMES: &[&str] = &["messaging", "billing_", "m2", "a;drop table x", "consumer_"];
    const SQL: &[&str] = &[
        "SELECT id FROM consumer_outbox WHERE state = 0",
        "CREATE INDEX consumer_outbox_waiting ON consumer_outbox (id); SELECT my_consumer_outbox FROM consumer_inbox",
    ];
    let input = (fuzz::text(NAMES, &["_"]), fuzz::text(SQL, &["consumer_", "consumer_inbox"]));
    Target::new("sql_names").run(input, |meter, (name, sql)| {
        let length = name.len() + sql.len();
        prop_assert_eq!(meter.parse(length, || Tables::new().in_sql(&sql)), sql.clone());
        match meter.parse(length, || Tables::new().with_prefix(name.clone())) {
            Ok(tables) => {
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
                // A word of 9 bytes may become one of 32.
                meter.parse(length, || tables.in_sql(&sql).len());
            }
            Err(error) => prop_assert!(error.is_config() && error.to_string().len() < 500),
        }
        Ok(())
    });
}
