//! Everything is published, in the order of each key.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use consumer_core::{Message, Outgoing, memory::PublishFault};
use consumer_sql::Outbox;
use sqlx::Connection;
use tokio::sync::oneshot;

use crate::{
    LIMIT, broker,
    database::{OnPostgres, TestDatabase, postgres},
    message,
    naive::NaiveRelay,
    on_both, published, relay, relayed, write,
};

on_both!(
    what_is_committed_is_published_as_it_was_written,
    what_was_rolled_back_is_never_published,
    inv08_each_key_keeps_its_order_while_the_broker_comes_and_goes,
    a_hot_key_does_not_hold_up_the_others,
    published_rows_are_kept_where_a_history_is_wanted,
);

async fn what_is_committed_is_published_as_it_was_written<D: TestDatabase>(database: D) {
    let broker = broker();
    let message = Message::builder()
        .payload(vec![0, 159, 146, 150])
        .key("k-1")
        .id("id-1")
        .header("tenant", "t-1")
        .header("raw", vec![0xff])
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let tombstone = Message::builder().key("k-2").id("id-2").build();
    write(&database, [Outgoing::new("t", message.build()), Outgoing::new("t", tombstone)]).await;
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.failed, report.quarantined), (2, 0, 0));
    let records = broker.records("t");
    let by_id =
        |id: &str| records.iter().find(|it| it.id().is_some_and(|it| it.as_ref() == id.as_bytes())).unwrap();
    let first = by_id("id-1");
    assert_eq!(first.payload().as_ref(), [0, 159, 146, 150]);
    assert_eq!(first.key().unwrap().as_ref(), b"k-1");
    assert_eq!(first.headers().get_str("tenant"), Some("t-1"));
    assert_eq!(first.headers().get("raw").unwrap().as_ref(), [0xff]);
    assert!(first.headers().get_str("traceparent").unwrap().starts_with("00-0af7"));
    assert!(by_id("id-2").is_tombstone());
    assert_eq!(database.count("1 = 1").await, 0);
}

async fn what_was_rolled_back_is_never_published<D: TestDatabase>(database: D) {
    let broker = broker();
    let outbox = Outbox::in_tables(database.tables());
    database.roll_back(&outbox, &message("1", "a")).await;
    write(&database, [message("2", "a")]).await;
    assert_eq!(relayed(&database, &broker).await.published, 1);
    assert_eq!(published(&broker, "t"), ["2"]);
}

async fn inv08_each_key_keeps_its_order_while_the_broker_comes_and_goes<D: TestDatabase>(database: D) {
    let broker = broker();
    let numbered = (0..300).map(|n| message(format!("{}/{n:03}", n % 7), &format!("key-{}", n % 7)));
    write(&database, numbered).await;
    broker.fail_next_publishes(20, PublishFault::LostConfirm);
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.failed), (300, 0));
    assert_in_order(published(&broker, "t"), 300);
}

/// Of each key: its messages in their order, where one may come again directly before its confirm.
fn assert_in_order(published: Vec<String>, total: usize) {
    let mut by_key: HashMap<String, Vec<String>> = HashMap::new();
    for payload in published {
        let key = payload.split('/').next().unwrap().to_owned();
        by_key.entry(key).or_default().push(payload);
    }
    let mut seen = 0;
    for (key, mut payloads) in by_key {
        payloads.dedup();
        assert!(payloads.is_sorted(), "{key}: {payloads:?}");
        seen += payloads.len();
    }
    assert_eq!(seen, total);
}

async fn a_hot_key_does_not_hold_up_the_others<D: TestDatabase>(database: D) {
    let broker = broker();
    write(&database, (0..50).map(|n| message(format!("hot/{n:03}"), "hot"))).await;
    write(&database, (0..50).map(|n| message(format!("{n}/000"), &format!("key-{n}")))).await;
    let without_key = (0..10).map(|n| Outgoing::new("t", Message::new(format!("none-{n}/000"))));
    write(&database, without_key).await;
    assert_eq!(relayed(&database, &broker).await.published, 110);
    assert_in_order(published(&broker, "t"), 110);
}

async fn published_rows_are_kept_where_a_history_is_wanted<D: TestDatabase>(database: D) {
    let broker = broker();
    write(&database, (0..10).map(|n| message(n.to_string(), "a"))).await;
    let run = relay(&database, &broker).history(Duration::from_secs(3600)).until_empty();
    run.run(std::future::pending()).await.unwrap();
    assert_eq!(database.count("state = 3 AND published_at IS NOT NULL").await, 10);
    // Once, also for one that sees the history.
    assert_eq!(relayed(&database, &broker).await.published, 0);
    assert_eq!(broker.records("t").len(), 10);
    write(&database, [message("10", "a")]).await;
    let run = relay(&database, &broker).history(Duration::ZERO).run(async {
        while database.count("1 = 1").await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::timeout(LIMIT, run).await.expect("the history is forgotten").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm21_a_row_that_commits_late_is_not_skipped() {
    let (database, broker) = (postgres().await, broker());
    let outbox = Outbox::in_tables(database.tables());
    let mut late = database.connect().await;
    let mut late = late.begin().await.unwrap();
    outbox.publish(&mut *late, &message("late/1", "late")).await.unwrap();
    // A later id, committed before.
    write(&database, [message("early/1", "early")]).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(relay(&database, &broker).run(async { drop(stopped.await) }));
    until(|| published(&broker, "t") == ["early/1"]).await;
    late.commit().await.unwrap();
    until(|| published(&broker, "t").len() == 2).await;
    drop(stop);
    assert_eq!(run.await.unwrap().unwrap().published, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm21_the_naive_relay_skips_a_row_that_commits_late() {
    let (database, broker) = (postgres().await, broker());
    let outbox = Outbox::in_tables(database.tables());
    let mut naive = NaiveRelay::new(broker.publisher());
    let mut late = database.connect().await;
    let mut late = late.begin().await.unwrap();
    outbox.publish(&mut *late, &message("late/1", "late")).await.unwrap();
    write(&database, [message("early/1", "early")]).await;
    naive.round(&database).await;
    late.commit().await.unwrap();
    naive.round(&database).await;
    assert_eq!(published(&broker, "t"), ["early/1"]);
}

/// Four relays at once, one of them aborted in the middle again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn inv08_several_relays_share_the_outbox_and_keep_the_order_of_each_key() {
    let (database, broker) = (postgres().await, broker());
    let total = 3_000;
    for chunk in 0..10 {
        let part = (0..300).map(|n| message(format!("{}/{chunk}{n:03}", n % 20), &format!("key-{}", n % 20)));
        write_all(&database, part).await;
    }
    let others: Vec<_> = (0..3)
        .map(|_| tokio::spawn(relay(&database, &broker).batch(20).until_empty().run(std::future::pending())))
        .collect();
    let dying = async {
        while database.count("1 = 1").await > 0 {
            let run = relay(&database, &broker).batch(20).run(std::future::pending());
            let _ = tokio::time::timeout(Duration::from_millis(100), run).await;
        }
    };
    tokio::time::timeout(LIMIT, dying).await.expect("the outbox is emptied");
    for other in others {
        other.await.unwrap().unwrap();
    }
    // Who dies publishes its last batch again: consumers, who deduplicate, see each message where it came first.
    let mut seen = HashSet::new();
    let first: Vec<_> = published(&broker, "t").into_iter().filter(|it| seen.insert(it.clone())).collect();
    assert_in_order(first, total);
}

/// However much waits, and whatever the planner knows of that: what is read does not grow with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_backlog_does_not_make_a_batch_cost_more() {
    let backlog = 100_000;
    let insert = "INSERT INTO OUTBOX (destination, message_id, message_key) \
                  SELECT 't', n, decode(md5(n::text), 'hex') FROM generate_series(1, 100000) n";
    let analyze = "ANALYZE OUTBOX";
    for steps in [[analyze, insert], [insert, analyze]] {
        let (database, broker) = (postgres().await, broker());
        database.execute("ALTER TABLE OUTBOX SET (autovacuum_enabled = false)").await;
        for step in steps {
            database.execute(step).await;
        }
        let relay = relay(&database, &broker).batch(100).workers(1);
        let run = relay.run(until(|| broker.records("t").len() >= 5_000));
        let published = run.await.unwrap().published;
        let read = read_rows(&database).await;
        // The lag is counted at the start. A plan that looks at the backlog reads at least all shards for each batch.
        let of_batches = read.saturating_sub(4 * backlog);
        assert!(of_batches < 15 * published, "{read} rows were read for {published}, {steps:?}");
    }
}

/// Rows that were read of the tables, by an index or without.
async fn read_rows(database: &OnPostgres) -> u64 {
    let schema = database.tables().schema().unwrap();
    let read = format!(
        "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = '{schema}')::bigint \
              + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = '{schema}')::bigint"
    );
    // The counters arrive when the relay's sessions have gone.
    let mut before = 0;
    loop {
        let now: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(read.clone())).fetch_one(database.pool()).await.unwrap();
        if now == before && now > 0 {
            return u64::try_from(now).unwrap();
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// In one transaction.
async fn write_all(database: &OnPostgres, messages: impl IntoIterator<Item = Outgoing>) {
    let outbox = Outbox::in_tables(database.tables());
    let mut transaction = database.pool().begin().await.unwrap();
    for message in messages {
        outbox.publish(&mut *transaction, &message).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("the condition comes true");
}
