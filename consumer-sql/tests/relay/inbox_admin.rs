//! What an operator sees of the inbox, and does about it.

use std::time::{Duration, SystemTime};

use consumer_core::dedup::StoreKey;
use consumer_sql::{InboxAdmin, InboxPurge};

use crate::{database::TestDatabase, on_both};

on_both!(
    records_are_counted_and_listed_by_consumer,
    a_purge_takes_what_is_old_in_portions_and_of_one_consumer,
    a_purge_of_a_key_takes_that_record,
);

fn admin<D: TestDatabase>(database: &D) -> InboxAdmin<D::Database> {
    InboxAdmin::new(database.pool().clone()).tables(database.tables().clone())
}

async fn record<D: TestDatabase>(database: &D, consumer: &str, keys: &[String], age: u32) {
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let hash = StoreKey::new(consumer.into(), key.clone().into()).hash().to_be_bytes();
            let (hash, key) = (database.bytes(&hash), database.bytes(key.as_bytes()));
            format!("({hash}, '{consumer}', {key}, {})", database.ago(age))
        })
        .collect();
    let insert = "INSERT INTO INBOX (key_hash, consumer, idempotency_key, recorded_at) VALUES";
    database.execute(&format!("{insert} {}", rows.join(", "))).await;
}

fn keys(of: std::ops::Range<u32>) -> Vec<String> {
    of.map(|n| format!("id-{n}")).collect()
}

async fn records_are_counted_and_listed_by_consumer<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    assert_eq!(admin.stats().await.unwrap(), []);
    record(&database, "mail", &keys(0..3), 7200).await;
    record(&database, "mail", &keys(3..4), 60).await;
    record(&database, "bill", &keys(0..1), 60).await;
    let stats = admin.stats().await.unwrap();
    let counts: Vec<_> = stats.iter().map(|it| (&*it.consumer, it.count)).collect();
    assert_eq!(counts, [("bill", 1), ("mail", 4)]);
    let age = |at| SystemTime::now().duration_since(at).unwrap().as_secs() / 600;
    assert_eq!((age(stats[1].oldest), age(stats[1].newest)), (12, 0));
    let newest = admin.list(Some("mail"), None, 1).await.unwrap();
    assert_eq!((&*newest[0].key, age(newest[0].recorded_at)), (&b"id-3"[..], 0));
    assert_eq!(admin.list(None, None, 10).await.unwrap().len(), 5);
    assert_eq!(admin.list(None, Some(b"id-0"), 10).await.unwrap().len(), 2);
    let one = admin.list(Some("bill"), Some(b"id-0"), 10).await.unwrap();
    assert_eq!((&*one[0].consumer, &*one[0].key, one.len()), ("bill", &b"id-0"[..], 1));
    assert_eq!(admin.list(Some("bill"), Some(b"id-3"), 10).await.unwrap(), []);
}

async fn a_purge_takes_what_is_old_in_portions_and_of_one_consumer<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    record(&database, "bill", &keys(0..600), 9000).await;
    record(&database, "mail", &keys(0..700), 8000).await;
    record(&database, "mail", &keys(700..1203), 7200).await;
    record(&database, "mail", &keys(2000..2007), 60).await;
    let hour = InboxPurge::OlderThan(Duration::from_secs(3600));
    assert_eq!(admin.count("mail", &hour).await.unwrap(), 1203);
    assert_eq!(admin.purge("mail", &hour).await.unwrap(), 1203);
    assert_eq!(admin.purge("mail", &hour).await.unwrap(), 0);
    let counts: Vec<_> = admin.stats().await.unwrap().into_iter().map(|it| it.count).collect();
    assert_eq!(counts, [600, 7]);
}

async fn a_purge_of_a_key_takes_that_record<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    record(&database, "mail", &keys(0..3), 60).await;
    record(&database, "bill", &keys(0..3), 60).await;
    let key = InboxPurge::Key(b"id-1".to_vec());
    assert_eq!(admin.count("mail", &key).await.unwrap(), 1);
    assert_eq!(admin.purge("mail", &key).await.unwrap(), 1);
    assert_eq!(admin.purge("mail", &key).await.unwrap(), 0);
    assert_eq!(admin.list(Some("mail"), None, 10).await.unwrap().len(), 2);
    assert_eq!(admin.list(Some("bill"), None, 10).await.unwrap().len(), 3);
}
