//! The end of a relay.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use consumer_core::{Message, Outgoing, PublishError, Publisher, memory::MemoryPublisher};
use consumer_sql::Relay;
use tokio::sync::{Notify, oneshot};

use crate::{
    LIMIT,
    database::{TestDatabase, postgres},
    message, on_both, write,
};

on_both!(
    a_stop_waits_for_what_is_on_its_way_and_takes_nothing_more,
    what_is_not_confirmed_in_time_stays,
    large_rows_are_taken_a_few_at_a_time,
    a_queue_that_takes_nothing_does_not_keep_the_others_waiting,
    a_publisher_that_panics_ends_the_relay_with_an_error
);

/// A broker whose confirms wait.
#[derive(Clone, Default)]
struct Slow(Arc<(AtomicUsize, Notify)>);

impl Publisher for Slow {
    fn publish(
        &self,
        _: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let shared = self.0.clone();
        shared.0.fetch_add(1, Ordering::SeqCst);
        async move {
            shared.1.notified().await;
            Ok(())
        }
    }
}

async fn begun(slow: &Slow, publishes: usize) {
    let begun = async {
        while slow.0.0.load(Ordering::SeqCst) < publishes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, begun).await.expect("the publishes begin");
}

fn slow_relay<D: TestDatabase>(database: &D, slow: &Slow) -> Relay<D::Database, Slow> {
    let relay = Relay::new(database.pool().clone(), slow.clone());
    relay.tables(database.tables().clone()).poll(Duration::from_millis(10)).workers(1).batch(3)
}

async fn a_stop_waits_for_what_is_on_its_way_and_takes_nothing_more<D: TestDatabase>(database: D) {
    let slow = Slow::default();
    // In one shard, and of two lanes.
    let other = |id: &str| Outgoing::new("other", message(id, "a").message().clone());
    write(&database, [message("1", "a"), other("2"), message("3", "a"), message("4", "a")]).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(slow_relay(&database, &slow).run(async { drop(stopped.await) }));
    begun(&slow, 2).await;
    drop(stop);
    slow.0.1.notify_one();
    slow.0.1.notify_one();
    // The third is of the batch, behind the first.
    begun(&slow, 3).await;
    slow.0.1.notify_one();
    let report = run.await.unwrap().unwrap();
    assert_eq!(report.published, 3);
    assert_eq!(database.count("1 = 1").await, 1);
    assert_eq!(slow.0.0.load(Ordering::SeqCst), 3);
}

async fn what_is_not_confirmed_in_time_stays<D: TestDatabase>(database: D) {
    let slow = Slow::default();
    let other = |id: &str| Outgoing::new("other", message(id, "a").message().clone());
    write(&database, [message("1", "a"), other("2")]).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let relay = slow_relay(&database, &slow).drain_timeout(Duration::from_millis(100));
    let run = tokio::spawn(relay.run(async { drop(stopped.await) }));
    begun(&slow, 2).await;
    slow.0.1.notify_one();
    drop(stop);
    let report = tokio::time::timeout(LIMIT, run).await.expect("it ends").unwrap().unwrap();
    assert_eq!(report.published, 1);
    assert_eq!(database.count("state = 0 AND attempts = 0").await, 1);
}

async fn large_rows_are_taken_a_few_at_a_time<D: TestDatabase>(database: D) {
    let slow = Slow::default();
    // In one shard, and each of a lane of its own.
    let large = |n: usize, mib: usize| {
        let message = Message::builder().payload(vec![b'x'; mib << 20]).key("a").build();
        Outgoing::new(format!("t-{n}"), message)
    };
    // 16 MiB at once, and the one that passes them.
    for (sizes, at_once) in [(vec![5, 5, 5, 5, 5, 5], 4), (vec![20, 1], 1)] {
        slow.0.0.store(0, Ordering::SeqCst);
        write(&database, sizes.into_iter().enumerate().map(|(n, mib)| large(n, mib))).await;
        let (stop, stopped) = oneshot::channel::<()>();
        let relay = slow_relay(&database, &slow).batch(100).drain_timeout(Duration::ZERO);
        let run = tokio::spawn(relay.run(async { drop(stopped.await) }));
        // A batch begins as a whole.
        begun(&slow, 1).await;
        drop(stop);
        tokio::time::timeout(LIMIT, run).await.expect("it ends").unwrap().unwrap();
        assert_eq!(slow.0.0.load(Ordering::SeqCst), at_once);
        database.execute("DELETE FROM OUTBOX").await;
    }
}

/// A broker whose queue `dead` takes nothing, and that panics at `panic`.
#[derive(Clone)]
struct Picky(MemoryPublisher);

impl Publisher for Picky {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        assert_ne!(outgoing.target(), "panic");
        let is_dead = outgoing.target() == "dead";
        let published = (!is_dead).then(|| self.0.publish(outgoing));
        async move {
            match published {
                Some(published) => published.await,
                None => Err(PublishError::unavailable("the queue is full")),
            }
        }
    }
}

fn to(target: &str, n: usize) -> Outgoing {
    Outgoing::new(target.to_owned(), Message::builder().payload("x").key(n.to_string()).build())
}

/// All rows of a batch again and again would be those of the queue that takes nothing.
async fn a_queue_that_takes_nothing_does_not_keep_the_others_waiting<D: TestDatabase>(database: D) {
    let broker = crate::broker();
    write(&database, (0..40).map(|n| to("dead", n))).await;
    write(&database, (0..5).map(|n| to("t", n))).await;
    let relay = Relay::new(database.pool().clone(), Picky(broker.publisher()));
    let relay = relay.tables(database.tables().clone()).workers(1).batch(10);
    let all_out = async {
        while broker.records("t").len() < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, relay.run(all_out)).await.expect("they go on").unwrap();
    assert_eq!(database.count("destination = 'dead' AND attempts = 0").await, 40);
    assert_eq!(database.count("destination = 'dead' AND state = 2 AND due_at IS NULL").await, 0);
}

async fn a_publisher_that_panics_ends_the_relay_with_an_error<D: TestDatabase>(database: D) {
    let broker = crate::broker();
    write(&database, [to("panic", 1)]).await;
    let relay =
        Relay::new(database.pool().clone(), Picky(broker.publisher())).tables(database.tables().clone());
    let error =
        tokio::time::timeout(LIMIT, relay.run(std::future::pending())).await.expect("it ends").unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(database.count("state = 0").await, 1);
}

/// The row may be another's by then: one that took the shard over, or another message under the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_relay_that_has_lost_its_connection_settles_nothing_that_it_had_taken() {
    let (database, slow) = (postgres().await, Slow::default());
    write(&database, [message("1", "a")]).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(slow_relay(&database, &slow).run(async { drop(stopped.await) }));
    begun(&slow, 1).await;
    let schema = database.tables().schema().unwrap();
    let cut = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%{schema}.%'"
    );
    database.execute(&cut).await;
    database.execute("UPDATE OUTBOX SET message_id = 'another'").await;
    slow.0.1.notify_one();
    // It is published for what it is now, and not deleted for what it was.
    begun(&slow, 2).await;
    assert_eq!(database.count("message_id = 'another'").await, 1);
    slow.0.1.notify_one();
    let gone = async {
        while database.count("1 = 1").await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("it is settled then");
    drop(stop);
    run.await.unwrap().unwrap();
}
