//! Rows that cannot be sent.

use consumer_core::{Message, Outgoing, memory::PublishFault};

use crate::{
    broker,
    database::{TestDatabase, postgres},
    message,
    naive::NaiveRelay,
    on_both, published, relay, relayed, write,
};

on_both!(
    fm28_a_row_that_cannot_be_sent_is_quarantined_its_key_held_and_the_rest_flows,
    a_row_that_is_refused_for_a_while_is_sent_later_and_before_those_behind_it,
    a_row_that_cannot_be_read_is_quarantined_at_once,
    a_broker_that_is_away_costs_no_attempt,
    many_rows_behind_a_refused_one_are_freed_in_portions,
);

fn to(target: &str, id: &str, key: &str) -> Outgoing {
    Outgoing::new(
        target.to_owned(),
        Message::builder().payload(id.to_owned()).id(id.to_owned()).key(key.to_owned()).build(),
    )
}

async fn fm28_a_row_that_cannot_be_sent_is_quarantined_its_key_held_and_the_rest_flows<D: TestDatabase>(
    database: D,
) {
    let broker = broker();
    // Another destination is another lane, though the key is the same.
    write(
        &database,
        [to("nowhere", "1", "a"), to("t", "2", "a"), to("nowhere", "3", "a"), to("t", "4", "b")],
    )
    .await;
    let run = relay(&database, &broker).max_attempts(3).until_empty();
    let report = run.run(std::future::pending()).await.unwrap();
    assert_eq!((report.published, report.failed, report.quarantined), (2, 3, 1));
    let mut sent = published(&broker, "t");
    sent.sort();
    assert_eq!(sent, ["2", "4"]);
    assert_eq!(
        database.count("message_id = '1' AND state = 2 AND attempts = 3 AND error LIKE '%nowhere%'").await,
        1
    );
    assert_eq!(database.count("message_id = '3' AND state = 1").await, 1);
    // What is written behind them is held as well, and does not keep the relay from ending.
    write(&database, [to("nowhere", "5", "a"), to("t", "6", "a")]).await;
    assert_eq!(relayed(&database, &broker).await.published, 1);
    assert_eq!(database.count("state = 1").await, 2);
}

async fn a_row_that_is_refused_for_a_while_is_sent_later_and_before_those_behind_it<D: TestDatabase>(
    database: D,
) {
    let broker = broker();
    write(&database, (0..5).map(|n| message(n.to_string(), "a"))).await;
    broker.fail_next_publishes(2, PublishFault::Refused);
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.failed, report.quarantined), (5, 2, 0));
    assert_eq!(published(&broker, "t"), ["0", "1", "2", "3", "4"]);
    assert_eq!(database.count("1 = 1").await, 0);
}

async fn a_row_that_cannot_be_read_is_quarantined_at_once<D: TestDatabase>(database: D) {
    let broker = broker();
    let row = |headers: &str, id: &str| {
        format!("INSERT INTO OUTBOX (destination, message_id, headers) VALUES ('t', '{id}', '{headers}')")
    };
    database.execute(&row("no json", "1")).await;
    database.execute(&row("[[1]]", "2")).await;
    database.execute(&row("[]", "")).await;
    database.execute(&row("{\"tenant\": \"t-1\"}", "4")).await;
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.failed, report.quarantined), (1, 3, 3));
    assert_eq!(database.count("state = 2 AND due_at IS NULL AND error LIKE '%headers%'").await, 2);
    assert_eq!(broker.records("t")[0].headers().get_str("tenant"), Some("t-1"));
}

async fn a_broker_that_is_away_costs_no_attempt<D: TestDatabase>(database: D) {
    let broker = broker();
    write(&database, (0..20).map(|n| message(n.to_string(), &n.to_string()))).await;
    broker.fail_next_publishes(30, PublishFault::Unavailable);
    let report =
        relay(&database, &broker).max_attempts(1).until_empty().run(std::future::pending()).await.unwrap();
    assert_eq!((report.published, report.failed), (20, 0));
    assert_eq!(broker.records("t").len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm28_the_naive_relay_is_stuck_behind_a_row_that_cannot_be_sent() {
    let (database, broker) = (postgres().await, broker());
    write(&database, [to("nowhere", "1", "a"), to("t", "2", "b")]).await;
    let mut naive = NaiveRelay::new(broker.publisher());
    for _ in 0..20 {
        naive.round(&database).await;
    }
    assert!(published(&broker, "t").is_empty());
}

async fn many_rows_behind_a_refused_one_are_freed_in_portions<D: TestDatabase>(database: D) {
    let broker = broker();
    write(&database, [message("0", "a")]).await;
    let behind = "INSERT INTO OUTBOX (destination, message_id, message_key, payload) \
                  WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 5500) \
                  SELECT 't', n, KEY, KEY FROM c";
    let key = if database.tables().schema().is_some() { "'a'::bytea" } else { "x'61'" };
    database.execute(&behind.replace("KEY", key)).await;
    broker.fail_next_publishes(1, PublishFault::Refused);
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.failed), (5_501, 1));
    assert_eq!(published(&broker, "t")[0], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm28_a_text_that_is_none_is_quarantined_on_sqlite_and_the_rest_flows() {
    let (database, broker) = (crate::database::sqlite().await, broker());
    let row = "INSERT INTO OUTBOX (destination, message_id, headers) VALUES ('t', '1', CAST(x'ff' AS TEXT))";
    database.execute(row).await;
    write(&database, [message("2", "a")]).await;
    let report = relayed(&database, &broker).await;
    assert_eq!((report.published, report.quarantined), (1, 1));
}
