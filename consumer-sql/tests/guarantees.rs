//! The README's table of stores and guarantees says what they do.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{collections::HashMap, time::Duration};

use consumer_core::{
    DedupLayer, Failure, Message, Outcome,
    dedup::{ClaimReply, ClaimRequest, DedupStore, Owner, Resolution, StoreKey},
    memory::MemoryStore,
    pipeline::{Explain, Explanation, Facts},
};
use consumer_sql::{InboxLayer, PostgresStore, SqliteStore, Tables, migrate};
use dedup_redis::RedisStore;
use sqlx::{PgPool, Postgres};
use tower::{Layer, Service, ServiceExt, service_fn};
use xtask::servers::{shared_postgres, shared_redis};

const README: &str = include_str!("../../README.md");

/// The rows of the table, by the name in their first cell.
fn rows() -> HashMap<&'static str, Vec<&'static str>> {
    let table = README.lines().skip_while(|line| !line.starts_with("| where ids are kept")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<_> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[0], cells)
    });
    rows.collect()
}

/// What a layer says of itself.
fn explained(layer: &impl Explain) -> Explanation {
    let mut facts = Facts::default();
    layer.explain(&mut facts);
    Explanation::of(&facts)
}

/// Whether the README has what the explanation guarantees of a key's effect, whatever its line breaks.
fn is_in_readme(explanation: &Explanation) -> bool {
    let readme = README.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence =
        explanation.guarantees().iter().find(|it| it.contains("for the consumer `guarantees`")).unwrap();
    readme.contains(sentence.split_once("`: ").unwrap().1)
}

fn request(key: &str, process: u128) -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("guarantees".into(), key.to_owned().into()),
        owner: Owner { process, seq: 1 },
        fingerprint: Some(7),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(60),
        attempt: 1,
        redrive: 0,
    }
}

/// Whether another process, which has the second store, knows what was completed by the first.
async fn is_known<D: DedupStore>(first: D, second: D) -> bool {
    let key = format!("{:?}", std::time::SystemTime::now());
    let ClaimReply::Claimed(claim) = first.claim(request(&key, 1)).await.unwrap() else {
        panic!("a new key")
    };
    first.resolve(claim, Resolution::Completed, Duration::from_secs(60)).await.unwrap();
    match second.claim(request(&key, 2)).await.unwrap() {
        ClaimReply::Completed => true,
        ClaimReply::Claimed(_) => false,
        other => panic!("{other:?}"),
    }
}

fn assert_row<D: DedupStore>(row: &[&str], store: D, is_known: bool) {
    let [name, effect, crash, shared, _] = row else { panic!("{row:?}") };
    assert_eq!(*effect, "once, as below", "{name}");
    let layer = DedupLayer::new(store, "guarantees");
    let explanation = explained(&layer);
    assert!(is_in_readme(&explanation), "{name}: {explanation}");
    assert_eq!(crash.starts_with("the ids"), !is_known, "{name}: {crash}");
    assert_eq!(*shared == "one process", !is_known, "{name}: {shared}");
    let forgets = explanation.limits().iter().any(|limit| limit.contains("restart"));
    assert_eq!(forgets, !is_known, "{name}: {explanation}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_readme_says_of_each_store_what_it_does() {
    let rows = rows();
    assert_eq!(rows.len(), 5, "{rows:?}");
    let memory = || MemoryStore::new();
    assert_row(&rows["MemoryStore"], memory(), is_known(memory(), memory()).await);

    let redis = async || RedisStore::connect(shared_redis()).await.unwrap();
    assert_row(&rows["RedisStore"], redis().await, is_known(redis().await, redis().await).await);

    let postgres = async || PostgresStore::connect(shared_postgres()).await.unwrap();
    assert_row(&rows["PostgresStore"], postgres().await, is_known(postgres().await, postgres().await).await);

    let folder = tempfile::tempdir().unwrap();
    let sqlite = async || {
        SqliteStore::open(format!("sqlite:{}", folder.path().join("ids.db").display())).await.unwrap()
    };
    assert_row(&rows["SqliteStore"], sqlite().await, is_known(sqlite().await, sqlite().await).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_readme_says_of_the_inbox_what_it_does() {
    let [_, effect, crash, ..] = rows()["InboxLayer"][..] else { panic!() };
    assert!(effect.starts_with("**exactly once**"), "{effect}");
    assert_eq!(crash, "nothing");
    let tables = Tables::new().in_schema(format!("guarantees_{}", std::process::id())).unwrap();
    let pool = async || PgPool::connect(&shared_postgres()).await.unwrap();
    migrate::<Postgres>(&mut pool().await.acquire().await.unwrap(), &tables).await.unwrap();
    let layer = async || {
        InboxLayer::new(pool().await, "guarantees").tables(tables.clone()).without_transaction_is_fine()
    };
    let explanation = explained(&layer().await);
    assert!(is_in_readme(&explanation), "{explanation}");
    // What a process recorded, another one knows.
    for expected in [Outcome::Processed, Outcome::Duplicate] {
        let handler = service_fn(|_: Message| async { Ok::<_, Failure>(()) });
        let mut stack = layer().await.layer(handler);
        let message = Message::builder().payload("x").id("1").build();
        assert_eq!(stack.ready().await.unwrap().call(message).await.unwrap(), expected);
    }
}
