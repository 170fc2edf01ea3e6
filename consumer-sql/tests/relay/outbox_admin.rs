//! What an operator sees of the outbox, and does about it.

use std::{future::poll_fn, task::Poll, time::Duration};

use consumer_core::{
    Message, Outgoing,
    memory::{MemoryBroker, PublishFault},
};
use consumer_sql::{OutboxAdmin, OutboxFilter, OutboxPurge, OutboxState};
use sqlx::{Row, postgres::PgPoolOptions};

use crate::{
    LIMIT, broker,
    database::{TestDatabase, postgres, sqlite},
    message, on_both, published, relay, relayed, write,
};

on_both!(
    rows_are_counted_listed_and_shown,
    what_is_requeued_is_tried_anew_before_what_was_held_behind_it,
    a_purge_of_a_quarantined_row_frees_what_is_behind_it,
    what_is_behind_another_failed_row_stays_held,
    a_purge_spares_what_it_was_not_told,
    more_than_a_portion_is_changed_and_no_row_twice,
    while_relays_work_nothing_stays_held_behind_what_was_requeued,
);

fn to(target: &str, id: &str, key: &str) -> Outgoing {
    let message = Message::builder().payload(format!("payload {id}")).id(id.to_owned()).key(key.to_owned());
    Outgoing::new(target.to_owned(), message.header("tenant", "t-1").build())
}

fn admin<D: TestDatabase>(database: &D) -> OutboxAdmin<D::Database> {
    OutboxAdmin::new(database.pool().clone()).tables(database.tables().clone())
}

/// One attempt at each row: what the broker refuses is quarantined.
async fn once<D: TestDatabase>(database: &D, broker: &MemoryBroker) {
    let run = relay(database, broker).max_attempts(1).until_empty().run(std::future::pending());
    tokio::time::timeout(LIMIT, run).await.expect("the outbox is emptied").unwrap();
}

async fn ids<D: TestDatabase>(database: &D, filter: &OutboxFilter) -> Vec<String> {
    admin(database).list(filter, 100).await.unwrap().into_iter().map(|row| row.message_id).collect()
}

fn of(state: OutboxState) -> OutboxFilter {
    OutboxFilter::default().state(state)
}

async fn rows_are_counted_listed_and_shown<D: TestDatabase>(database: D) {
    let (broker, admin) = (broker(), admin(&database));
    let rows = [to("nowhere", "1", "a"), to("nowhere", "2", "a"), to("elsewhere", "3", "a")];
    write(&database, rows).await;
    once(&database, &broker).await;
    write(&database, [to("t", "4", "b"), Outgoing::new("t", Message::builder().key("c").id("5").build())])
        .await;
    let stats = admin.stats().await.unwrap();
    assert_eq!((stats.lag.waiting, stats.lag.held, stats.lag.quarantined), (2, 1, 2));
    let counts: Vec<_> = stats.rows.iter().map(|it| (&*it.destination, it.state, it.count)).collect();
    assert_eq!(
        counts,
        [
            ("elsewhere", OutboxState::Quarantined, 1),
            ("nowhere", OutboxState::Held, 1),
            ("nowhere", OutboxState::Quarantined, 1),
            ("t", OutboxState::Waiting, 2),
        ]
    );
    assert_eq!(stats.errors.len(), 2);
    assert!(stats.errors.iter().any(|it| it.error.contains("nowhere") && it.count == 1), "{stats:?}");

    assert_eq!(ids(&database, &OutboxFilter::default()).await, ["1", "2", "3", "4", "5"]);
    assert_eq!(ids(&database, &of(OutboxState::Quarantined)).await, ["1", "3"]);
    assert_eq!(ids(&database, &of(OutboxState::Held)).await, ["2"]);
    assert_eq!(ids(&database, &OutboxFilter::default().destination("nowhere")).await, ["1", "2"]);
    assert_eq!(ids(&database, &OutboxFilter::default().key("a").destination("elsewhere")).await, ["3"]);
    assert_eq!(ids(&database, &OutboxFilter::default().message_id("4")).await, ["4"]);
    assert_eq!(ids(&database, &OutboxFilter::default().error("elsewhere")).await, ["3"]);
    assert_eq!(admin.list(&OutboxFilter::default(), 2).await.unwrap().len(), 2);
    assert_eq!(admin.count(&OutboxFilter::default().key("a")).await.unwrap(), 3);

    let row = admin.list(&of(OutboxState::Quarantined), 1).await.unwrap().remove(0);
    assert_eq!((row.attempts, row.bytes, row.key.as_deref()), (1, Some(9), Some(&b"a"[..])));
    assert!(row.error.as_deref().unwrap().contains("nowhere"));
    let age = std::time::SystemTime::now().duration_since(row.created_at).unwrap_or_default();
    assert!(age < Duration::from_secs(3600), "{row:?}");
    let shown = admin.show(row.id).await.unwrap().unwrap();
    assert_eq!(shown.row, row);
    assert_eq!(shown.payload.as_deref(), Some(&b"payload 1"[..]));
    assert_eq!(shown.read_headers().unwrap().get_str("tenant"), Some("t-1"));
    let tombstone = admin.list(&OutboxFilter::default().message_id("5"), 1).await.unwrap().remove(0);
    assert_eq!((tombstone.bytes, tombstone.error), (None, None));
    assert_eq!(admin.show(i64::MAX).await.unwrap(), None);
}

async fn what_is_requeued_is_tried_anew_before_what_was_held_behind_it<D: TestDatabase>(database: D) {
    let (broker, admin) = (broker(), admin(&database));
    let rows = [to("late", "1", "a"), to("late", "2", "a"), to("late", "3", "b"), to("late", "4", "a")];
    write(&database, rows).await;
    once(&database, &broker).await;
    assert_eq!(ids(&database, &of(OutboxState::Quarantined)).await, ["1", "3"]);
    assert_eq!(ids(&database, &of(OutboxState::Held)).await, ["2", "4"]);
    let change = admin.requeue(&OutboxFilter::default().message_id("1")).await.unwrap();
    assert_eq!((change.rows, change.freed), (1, 2));
    assert_eq!(database.count("state = 0 AND attempts = 0 AND error IS NULL").await, 3);
    broker.create_topic("late", 1);
    assert_eq!(relayed(&database, &broker).await.published, 3);
    assert_eq!(published(&broker, "late"), ["payload 1", "payload 2", "payload 4"]);
    // One that waits to be tried again need not wait.
    broker.fail_next_publishes(1, PublishFault::Refused);
    assert_eq!(admin.requeue(&OutboxFilter::default()).await.unwrap().rows, 1);
    let waits = relay(&database, &broker).backoff(Duration::from_secs(3600), Duration::from_secs(3600));
    let refused = async {
        while database.count("state = 2").await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waits.run(refused)).await.expect("it is refused").unwrap();
    assert_eq!(ids(&database, &of(OutboxState::Retrying)).await, ["3"]);
    assert_eq!(admin.requeue(&of(OutboxState::Quarantined)).await.unwrap().rows, 0);
    assert_eq!(admin.requeue(&of(OutboxState::Retrying)).await.unwrap().rows, 1);
    assert_eq!(relayed(&database, &broker).await.published, 1);
}

async fn a_purge_of_a_quarantined_row_frees_what_is_behind_it<D: TestDatabase>(database: D) {
    let (broker, admin) = (broker(), admin(&database));
    write(&database, [to("late", "1", "a"), to("late", "2", "a")]).await;
    once(&database, &broker).await;
    let change = admin.purge(&OutboxFilter::default(), OutboxPurge::Quarantined).await.unwrap();
    assert_eq!((change.rows, change.freed), (1, 1));
    broker.create_topic("late", 1);
    assert_eq!(relayed(&database, &broker).await.published, 1);
    assert_eq!(published(&broker, "late"), ["payload 2"]);
}

async fn what_is_behind_another_failed_row_stays_held<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    write(&database, (1..=5).map(|n| message(n.to_string(), "a"))).await;
    // As when the transaction of the first has committed after the third had failed.
    database.execute("UPDATE OUTBOX SET state = 2, attempts = 1 WHERE message_id IN ('1', '3')").await;
    database.execute("UPDATE OUTBOX SET state = 1 WHERE message_id IN ('2', '4', '5')").await;
    let change = admin.requeue(&OutboxFilter::default().message_id("1")).await.unwrap();
    assert_eq!((change.rows, change.freed), (1, 1));
    assert_eq!(ids(&database, &of(OutboxState::Held)).await, ["4", "5"]);
    let change = admin.purge(&OutboxFilter::default(), OutboxPurge::Quarantined).await.unwrap();
    assert_eq!((change.rows, change.freed), (1, 2));
    let broker = broker();
    assert_eq!(relayed(&database, &broker).await.published, 4);
    assert_eq!(published(&broker, "t"), ["1", "2", "4", "5"]);
}

async fn a_purge_spares_what_it_was_not_told<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    let all = OutboxFilter::default();
    write(&database, (1..=5).map(|n| message(n.to_string(), &format!("key {n}")))).await;
    database.execute("UPDATE OUTBOX SET state = 2, due_at = created_at WHERE message_id = '2'").await;
    database.execute("UPDATE OUTBOX SET state = 2 WHERE message_id = '3'").await;
    database.execute("UPDATE OUTBOX SET state = 3, published_at = created_at WHERE message_id = '4'").await;
    let hour = OutboxPurge::Published(Duration::from_secs(3600));
    assert_eq!(admin.purge(&all, hour).await.unwrap().rows, 0);
    let other = OutboxFilter::default().destination("other");
    assert_eq!(admin.purge(&other, OutboxPurge::Quarantined).await.unwrap().rows, 0);
    assert_eq!(admin.purge(&other, OutboxPurge::Published(Duration::ZERO)).await.unwrap().rows, 0);
    for (what, count) in [
        (hour, 0),
        (OutboxPurge::Published(Duration::ZERO), 1),
        (OutboxPurge::Quarantined, 1),
        (OutboxPurge::Unpublished, 4),
    ] {
        assert_eq!(admin.purgeable(&all, what).await.unwrap(), count, "{what:?}");
    }
    assert_eq!(admin.purge(&all, OutboxPurge::Quarantined).await.unwrap().rows, 1);
    assert_eq!(ids(&database, &all).await, ["1", "2", "4", "5"]);
    assert_eq!(admin.purge(&all, OutboxPurge::Published(Duration::ZERO)).await.unwrap().rows, 1);
    assert_eq!(ids(&database, &all).await, ["1", "2", "5"]);
    let waiting = of(OutboxState::Waiting).key("key 1");
    assert_eq!(admin.purge(&waiting, OutboxPurge::Unpublished).await.unwrap().rows, 1);
    assert_eq!(admin.purge(&all, OutboxPurge::Unpublished).await.unwrap().rows, 2);
    assert_eq!(database.count("1 = 1").await, 0);
}

async fn more_than_a_portion_is_changed_and_no_row_twice<D: TestDatabase>(database: D) {
    let admin = admin(&database);
    let row = "INSERT INTO OUTBOX (destination, message_id, state) \
               WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1203) \
               SELECT 't', n, 2 FROM n";
    database.execute(row).await;
    let change = admin.requeue(&OutboxFilter::default()).await.unwrap();
    assert_eq!((change.rows, change.freed), (1203, 0));
    database.execute("UPDATE OUTBOX SET state = 3, published_at = created_at").await;
    let change = admin.purge(&OutboxFilter::default(), OutboxPurge::Published(Duration::ZERO)).await.unwrap();
    assert_eq!(change.rows, 1203);
}

/// As by a relay that is quick, and a broker that refuses them again.
#[tokio::test]
async fn what_fails_again_at_once_is_not_requeued_for_ever() {
    let database = sqlite().await;
    write(&database, (0..3).map(|n| message(n.to_string(), "a"))).await;
    database.execute("UPDATE OUTBOX SET state = 2").await;
    let again = "CREATE TRIGGER again AFTER UPDATE ON OUTBOX WHEN NEW.state = 0 \
                 BEGIN UPDATE OUTBOX SET state = 2 WHERE id = NEW.id; END";
    database.execute(again).await;
    let admin = admin(&database);
    let change = tokio::time::timeout(LIMIT, admin.requeue(&OutboxFilter::default())).await;
    assert_eq!(change.expect("it ends").unwrap().rows, 3);
}

/// What the broker refuses is quarantined at once, and requeued by somebody who does nothing else.
async fn while_relays_work_nothing_stays_held_behind_what_was_requeued<D: TestDatabase>(database: D) {
    let (broker, admin) = (broker(), admin(&database));
    broker.fail_next_publishes(60, PublishFault::Refused);
    let emptied = async {
        for n in 0..200 {
            write(&database, [message(format!("{n:03}"), &format!("key-{}", n % 3))]).await;
            admin.requeue(&OutboxFilter::default()).await.unwrap();
        }
        while database.count("1 = 1").await > 0 {
            admin.requeue(&OutboxFilter::default()).await.unwrap();
        }
    };
    let run = relay(&database, &broker).max_attempts(1).batch(5).poll(Duration::from_millis(1));
    let report = tokio::time::timeout(LIMIT, run.run(emptied)).await.expect("nothing stays held").unwrap();
    assert_eq!((report.published, report.failed), (200, 60));
    let mut sent = published(&broker, "t");
    for key in 0..3 {
        let of_key: Vec<_> =
            sent.iter().filter(|it| it.parse::<u32>().unwrap() % 3 == key).cloned().collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 200);
}

/// A pool of one connection, so that a dirty one would be the next one's.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_given_up_at_any_poll_it_leaves_no_transaction_in_the_pool() {
    let (database, broker) = (postgres().await, broker());
    write(&database, [to("nowhere", "1", "a"), to("nowhere", "2", "a")]).await;
    let narrow = PgPoolOptions::new().max_connections(1);
    let narrow = narrow.connect(&xtask::servers::shared_postgres()).await.unwrap();
    let admin = OutboxAdmin::new(narrow.clone()).tables(database.tables().clone());
    let filter = OutboxFilter::default();
    for is_answered in [false, true] {
        // What was requeued in the round before fails again.
        once(&database, &broker).await;
        for polls in 0.. {
            let mut changing = Box::pin(admin.requeue(&filter));
            let mut left = polls;
            let changed = poll_fn(|cx| {
                if left == 0 {
                    return Poll::Ready(false);
                }
                left -= 1;
                match changing.as_mut().poll(cx) {
                    Poll::Ready(changed) => Poll::Ready(changed.is_ok()),
                    Poll::Pending if left == 0 && !is_answered => Poll::Ready(false),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await;
            drop(changing);
            // Within a transaction it is the time at which that began.
            let now = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(&narrow).await.unwrap();
            let is_outside: bool = now.get(0);
            assert!(is_outside, "after {polls} polls");
            if changed {
                assert!(polls > 3, "so few are no test");
                break;
            }
        }
    }
}
