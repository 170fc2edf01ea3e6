//! What stands in options, environment variables and payloads.

use std::time::Duration;

use clap::Parser;
use fuzz::Target;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    Cli,
    value::{delays, duration, fraction, some_duration},
};
use crate::order::OrderPlaced;

#[test]
fn fuzz_orders_values() {
    const SAMPLES: &[&str] = &["250ms", "1.5s", "10m", "24h", "30s,5m, 1h", "0.29", "1"];
    let input = (fuzz::text(SAMPLES, &["ms", "h", ","]), any::<u32>(), any::<u64>());
    Target::new("orders_values").at_most(32, 4096).run(input, |meter, (text, seconds, whole)| {
        meter.parse(text.len(), || {
            let texts = [
                duration(&text).err(),
                some_duration(&text).err(),
                delays(&text).err(),
                fraction(&text).err(),
            ];
            assert!(texts.iter().flatten().all(|why| why.len() < 100));
        });
        if let Ok(part) = fraction(&text) {
            prop_assert!(part.of(whole) <= whole);
        }
        prop_assert_eq!(duration(&format!("{seconds}s")), Ok(Duration::from_secs(seconds.into())));
        Ok(())
    });
}

#[test]
fn fuzz_orders_command_line() {
    const OPTIONS: &[&str] = &[
        "--broker",
        "--store",
        "--topic",
        "--group",
        "--dead-letter",
        "--mail-log",
        "--max-in-flight",
        "--attempts",
        "--backoff",
        "--rate",
        "--handler-delay",
        "--lease",
        "--retention",
        "--drain",
        "--delays",
        "--ordering",
        "--repaired",
        "--until-idle",
        "--count",
        "--duplicates",
        "--seed",
        "consume",
        "produce",
    ];
    const VALUES: &[&str] = &["kafka://h:1", "memory:", "orders", "3", "30s", "0.2", "key"];
    let word = prop_oneof![select(OPTIONS).prop_map(str::to_owned), fuzz::text(VALUES, OPTIONS)];
    let input = (select(&["consume", "produce"][..]), vec(word, 0..8));
    // The parser itself is made anew each time.
    Target::new("orders_command_line").at_most(64, 512 * 1024).run(input, |meter, (command, words)| {
        let length = words.iter().map(String::len).sum();
        let all = ["orders", command].into_iter().map(str::to_owned).chain(words);
        let _ = meter.parse(length, || Cli::try_parse_from(all).map_err(|error| error.to_string()));
        Ok(())
    });
}

#[test]
fn fuzz_orders_payload() {
    const ORDERS: &[&str] =
        &[r#"{"order_id":"o-17","email":"ann@example.com","total":1999}"#, r#"{"order_id":"","email":"é"}"#];
    Target::new("orders_payload").at_most(64, 4096).run(
        fuzz::bytes(ORDERS, &["order_id", "total"]),
        |meter, payload| {
            let order = meter.parse(payload.len(), || serde_json::from_slice::<OrderPlaced>(&payload));
            prop_assert!(
                order.is_ok()
                    || !payload.starts_with(ORDERS[0].as_bytes())
                    || payload.len() > ORDERS[0].len()
            );
            Ok(())
        },
    );
}
