//! A key that waits for its delayed retry, on one queue with a single active consumer, and Redis.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    admin, number, publisher,
    run::{Run, until},
    unique,
};
use consumer_amqp::{AmqpPublisher, AmqpSource, Queue};
use consumer_core::{
    DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, Message, Outgoing, Publisher,
    dedup::{DedupStore, Gate, ParkOperation, ParkReply, ParkRequest, StoreKey},
    runtime::{Ordering, Stack},
};
use dedup_redis::RedisStore;
use tower::{ServiceBuilder, service_fn};
use xtask::servers::{shared_rabbitmq, shared_redis};

const DELAYS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(4)];

/// Calls by number and attempt: the tens of a key are its own.
type Calls = Arc<Mutex<Vec<(u32, u32)>>>;

struct Process<'a> {
    url: &'a str,
    queue: &'a str,
    group: &'a str,
    calls: &'a Calls,
}

impl Process<'_> {
    /// The first message of key 1 is down for its first two attempts.
    async fn start(&self, nonce: u128) -> Run {
        let source = AmqpSource::builder(self.url).queue(Queue::quorum(self.queue).single_active_consumer());
        Run::start_ordered(source, self.stack(nonce).await, Ordering::Key)
    }

    async fn stack(&self, nonce: u128) -> impl Stack + use<> {
        let store = RedisStore::connect(shared_redis()).await.unwrap();
        let dedup = DedupLayer::new(store, self.group).as_process(nonce, Gate::new());
        let calls = self.calls.clone();
        ServiceBuilder::new()
            .layer(DeadLetterLayer::new(publisher(self.url), format!("{}.dead", self.queue)))
            .layer(DelayedRetryLayer::new(publisher(self.url)).delays(DELAYS).parking(dedup.parking()))
            .layer(dedup)
            .service(service_fn(move |message: Message| {
                calls.lock().unwrap().push((number(&message), message.attempt()));
                let is_down = number(&message) == 100 && message.attempt() < 3;
                async move { if is_down { Err(Failure::transient("down")) } else { Ok(()) } }
            }))
    }

    fn of(&self, key: u32) -> Vec<u32> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|(number, _)| *number).filter(|number| number / 100 == key).collect()
    }
}

async fn produce(publisher: &AmqpPublisher, queue: &str, numbers: impl Iterator<Item = u32>) {
    for n in numbers {
        let (key, id) = ((n / 100).to_string(), format!("{queue}-{n}"));
        let message = Message::builder().payload(n.to_string()).key(key).header("message-id", id);
        publisher.publish(Outgoing::new(queue, message.build())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm22_later_messages_of_a_key_are_parked_behind_its_delayed_retry_also_for_the_next_owner() {
    let (url, queue, calls) = (shared_rabbitmq(), unique("q"), Calls::default());
    admin(&url).ensure_queue(Queue::quorum(&queue).single_active_consumer()).await.unwrap();
    let process = Process { url: &url, queue: &queue, group: &unique("group"), calls: &calls };
    let publisher = publisher(&url);
    produce(&publisher, &queue, (0..20).flat_map(|n| [100 + n, 200 + n])).await;
    let first = process.start(1).await;
    until("the other key", || process.of(2).len() == 20).await;
    until("the first delay", || process.of(1).len() == 2 && first.health.status().held == 0).await;
    assert_eq!(process.of(1), [100, 100], "the others of its key wait");
    // Another process has the queue now, and more comes.
    let second = process.start(2).await;
    let report = first.stop().await;
    assert!(report.deferred >= 20, "{report}");
    produce(&publisher, &queue, (20..30).flat_map(|n| [100 + n, 200 + n])).await;
    until("the other key", || process.of(2).len() == 30).await;
    until("all", || process.of(1).len() == 32).await;
    until("their end", || second.health.status().held == 0).await;
    let expected: Vec<u32> = [100, 100].into_iter().chain(100..130).collect();
    assert_eq!(process.of(1), expected, "in order, and each once");
    let report = second.stop().await;
    assert_eq!((report.dead_lettered, report.duplicates), (0, 0), "{report}");

    let store = RedisStore::connect(shared_redis()).await.unwrap();
    let request = ParkRequest {
        key: StoreKey::new(process.group.into(), "1".into()),
        id: 1,
        operation: ParkOperation::Enter { limit: 1 },
        lifetime: Duration::from_secs(1),
    };
    assert_eq!(store.park(request).await.unwrap(), ParkReply::Free);
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}
