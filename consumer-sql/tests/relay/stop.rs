//! The end of a relay.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use consumer_core::{Message, Outgoing, PublishError, Publisher};
use consumer_sql::Relay;
use tokio::sync::{Notify, oneshot};

use crate::{LIMIT, database::TestDatabase, message, on_both, write};

on_both!(
    a_stop_waits_for_what_is_on_its_way_and_takes_nothing_more,
    what_is_not_confirmed_in_time_stays,
    large_rows_are_taken_a_few_at_a_time
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
