mod catching_up;
mod parking;
mod seats;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    Consumer, DeadLetterLayer, DedupLayer, Failure, Message, Outcome, Outgoing, Publisher, Report,
    RetryLayer,
    memory::{MemoryBroker, MemoryStore, PublishFault},
    runtime::{Health, Ordering, Stack},
};

const SECOND: Duration = Duration::from_secs(1);

/// Calls by time and attempt, in seconds from the start.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<(u64, u32)>>>, Instant);

impl Log {
    fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    fn all(&self) -> Vec<(u64, u32)> {
        self.0.lock().unwrap().clone()
    }
}

async fn broker(ids: &[&str]) -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 1);
    broker.create_topic("dead", 1);
    for id in ids {
        publish(&broker, id).await;
    }
    broker
}

async fn publish(broker: &MemoryBroker, id: &str) {
    let message = Message::builder().payload("x").id(id.to_owned()).key("k").build();
    broker.publisher().publish(Outgoing::new("t", message)).await.unwrap();
}

fn layer(broker: &MemoryBroker) -> DelayedRetryLayer<impl Publisher + use<>> {
    DelayedRetryLayer::new(broker.publisher()).delays([30 * SECOND, 300 * SECOND]).clock(broker.clock())
}

/// Two attempts in the process; fails as `fail` says for each attempt.
fn stack<F: Fn(u32) -> Option<Failure> + Clone + Send + Sync + 'static>(
    broker: &MemoryBroker,
    store: &MemoryStore,
    log: &Log,
    fail: F,
) -> impl Stack + use<F> {
    let log = log.clone();
    ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead").clock(broker.clock()))
        .layer(layer(broker))
        .layer(DedupLayer::new(store.clone(), "c"))
        .layer(RetryLayer::fixed(SECOND).max_attempts(2))
        .service(service_fn(move |message: Message| {
            log.0.lock().unwrap().push((log.1.elapsed().as_secs(), message.attempt()));
            let failure = fail(message.attempt());
            async move { failure.map_or(Ok(()), Err) }
        }))
}

fn down(_: u32) -> Option<Failure> {
    Some(Failure::transient("down"))
}

fn run(broker: &MemoryBroker, stack: impl Stack, idle: Duration) -> (Health, JoinHandle<Report>) {
    let consumer = Consumer::new(broker.source("g", ["t"]), stack).stop_when_idle(idle);
    (consumer.health(), tokio::spawn(async move { consumer.run().await.unwrap() }))
}

#[tokio::test(start_paused = true)]
async fn what_fails_comes_again_after_each_delay_and_then_becomes_a_dead_letter() {
    let (broker, log) = (broker(&["1"]).await, Log::new());
    let (_, done) = run(&broker, stack(&broker, &MemoryStore::new(), &log, down), 400 * SECOND);
    let report = done.await.unwrap();
    // Two calls in the process, then one for each delay.
    assert_eq!(log.all(), [(0, 1), (1, 2), (31, 3), (331, 4)]);
    assert_eq!((report.deferred, report.dead_lettered, report.processed), (2, 1, 0));
    let records = broker.records("t");
    let header = |n: usize, name: &str| records[n].headers().get_str(name).map(str::to_owned);
    assert_eq!(
        (header(1, "retry-attempt"), header(2, "retry-attempt")),
        (Some("3".into()), Some("4".into()))
    );
    assert_eq!((header(1, "retry-round"), header(2, "retry-round")), (Some("1".into()), Some("2".into())));
    assert_eq!(header(2, "retry-offset").as_deref(), Some("0"), "where it came from at first");
    assert_eq!(header(1, "retry-source").as_deref(), Some("memory"));
    assert_eq!(header(1, "retry-first-failed-at"), header(2, "retry-first-failed-at"));
    assert!(header(1, "retry-not-before") < header(2, "retry-not-before"));
    let dead = &broker.records("dead")[0];
    assert_eq!(dead.headers().get_str("dead-letter-attempts"), Some("4"));
    assert_eq!(
        dead.headers().get_str("dead-letter-first-failed-at").map(str::to_owned),
        header(1, "retry-first-failed-at")
    );
    assert_eq!(dead.headers().get_str("dead-letter-reason"), Some("attempts-exhausted"));
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_may_succeed_and_is_completed() {
    let (broker, log, store) = (broker(&["1"]).await, Log::new(), MemoryStore::new());
    let until_third = |attempt| if attempt < 3 { down(attempt) } else { None };
    let (_, done) = run(&broker, stack(&broker, &store, &log, until_third), 60 * SECOND);
    sleep(40 * SECOND).await;
    publish(&broker, "1").await;
    let report = done.await.unwrap();
    assert_eq!(log.all(), [(0, 1), (1, 2), (31, 3)]);
    assert_eq!((report.deferred, report.processed, report.duplicates), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_does_not_help_what_is_permanent() {
    let (broker, log) = (broker(&["1"]).await, Log::new());
    let (_, done) =
        run(&broker, stack(&broker, &MemoryStore::new(), &log, |_| Some(Failure::permanent("no"))), SECOND);
    let report = done.await.unwrap();
    assert_eq!((report.deferred, report.dead_lettered, log.all().len()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_asked_for_is_rounded_up_to_a_delay() {
    let (broker, log) = (broker(&["1"]).await, Log::new());
    let asks = |attempt| (attempt < 2).then(|| Failure::transient("busy").with_retry_after(31 * SECOND));
    let stack = {
        let log = log.clone();
        ServiceBuilder::new().layer(layer(&broker)).service(service_fn(move |message: Message| {
            log.0.lock().unwrap().push((log.1.elapsed().as_secs(), message.attempt()));
            let failure = asks(message.attempt());
            async move { failure.map_or(Ok(()), Err) }
        }))
    };
    let (_, done) = run(&broker, stack, 400 * SECOND);
    assert_eq!(done.await.unwrap().processed, 1);
    assert_eq!(log.all(), [(0, 1), (300, 2)], "without a dedup layer, too, the count goes on");
}

#[tokio::test(start_paused = true)]
async fn fm34_an_original_that_comes_again_after_its_copy_starts_no_second_chain() {
    let (broker, log, store) = (broker(&["1"]).await, Log::new(), MemoryStore::new());
    // The confirm of the first copy is lost: it is published twice. Later the ack of the original is lost as well.
    broker.fail_next_publishes(1, PublishFault::LostConfirm);
    let (_, done) = run(&broker, stack(&broker, &store, &log, down), 400 * SECOND);
    sleep(10 * SECOND).await;
    publish(&broker, "1").await;
    let report = done.await.unwrap();
    assert_eq!(log.all(), [(0, 1), (1, 2), (31, 3), (331, 4)], "one chain");
    assert_eq!((report.deferred, report.dead_lettered), (2, 1));
    // The original that came again, and the copies that were too many.
    assert!(report.duplicates >= 2, "{report:?}");
    assert_eq!(broker.records("dead").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn fm34_a_crash_after_the_confirm_loses_nothing_and_counts_on() {
    let (broker, log, store) = (broker(&["1"]).await, Log::new(), MemoryStore::new());
    // The first process: its copy is stored, its confirm never comes, and it is gone.
    broker.fail_next_publishes(1000, PublishFault::LostConfirm);
    let (_, first) = run(&broker, stack(&broker, &store, &log, down), 400 * SECOND);
    sleep(2 * SECOND).await;
    first.abort();
    broker.fail_next_publishes(0, PublishFault::LostConfirm);
    sleep(SECOND).await;
    let (_, second) = run(&broker, stack(&broker, &store, &log, down), 700 * SECOND);
    let report = second.await.unwrap();
    assert_eq!(
        log.all(),
        [(0, 1), (1, 2), (3, 3), (33, 4), (333, 5)],
        "one chain, and the count never starts anew"
    );
    assert_eq!(report.dead_lettered, 1, "{report:?}");
    assert_eq!(broker.records("dead").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_broker_is_away_only_the_publish_is_repeated_and_the_source_pauses() {
    let (broker, log) = (broker(&["1", "2"]).await, Log::new());
    broker.fail_next_publishes(12, PublishFault::Unavailable);
    let (health, done) = run(&broker, stack(&broker, &MemoryStore::new(), &log, down), 20 * SECOND);
    sleep(3 * SECOND).await;
    assert!(health.status().reason.is_some_and(|why| why.starts_with("paused")));
    let report = done.await.unwrap();
    assert_eq!(report.deferred, 2);
    assert_eq!(log.all().len(), 4, "two calls for each, however long the publish took");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_refused_leaves_the_failure_to_the_dead_letters() {
    let (broker, log) = (broker(&["1"]).await, Log::new());
    broker.fail_next_publishes(1, PublishFault::TooLarge);
    let store = MemoryStore::new();
    let (_, done) = run(&broker, stack(&broker, &store, &log, down), 10 * SECOND);
    let report = done.await.unwrap();
    assert_eq!((report.deferred, report.dead_lettered), (0, 1));
    // Its claim went along: the key is known to be set aside.
    publish(&broker, "1").await;
    let (_, done) = run(&broker, stack(&broker, &store, &log, down), 10 * SECOND);
    assert_eq!(done.await.unwrap().duplicates, 1);
    assert_eq!(log.all().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_order_it_would_break_is_refused_before_a_message_is_taken() {
    let parked = |broker: &MemoryBroker, store: &MemoryStore| {
        layer(broker).parking(DedupLayer::new(store.clone(), "c").parking())
    };
    for (ordering, is_parked, word) in [
        (Ordering::Key, false, "parking"),
        (Ordering::Partition, false, "exclude"),
        (Ordering::Partition, true, "exclude"),
    ] {
        let (broker, store) = (broker(&["1", "2", "3"]).await, MemoryStore::new());
        let layer = if is_parked { parked(&broker, &store) } else { layer(&broker) };
        let stack = ServiceBuilder::new()
            .layer(layer)
            .layer(DedupLayer::new(store.clone(), "c"))
            .service(service_fn(|_: Message| async { Ok::<_, Failure>(()) }));
        let consumer = Consumer::new(broker.source("g", ["t"]), stack).ordering(ordering);
        let error = consumer.run().now_or_never().expect("nothing is waited for").unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains(word), "{why}");
        assert_eq!((error.report().received, store.stats().claims), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stack_in_another_task_refuses_with_the_first_message_and_hands_everything_back() {
    let broker = broker(&["1", "2", "3"]).await;
    let stack = ServiceBuilder::new()
        .buffer(10)
        .layer(layer(&broker))
        .service(service_fn(|_: Message| async { Ok::<_, Failure>(()) }));
    let consumer = Consumer::new(broker.source("g", ["t"]), stack).ordering(Ordering::Key);
    let error = consumer.stop_when_idle(60 * SECOND).run().await.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("parking"), "{why}");
    let report = error.report();
    assert_eq!((report.received, report.returned, report.processed), (3, 3, 0), "{report}");
    assert_eq!(broker.committed("g", "t", 0), None);
}

#[tokio::test(start_paused = true)]
async fn without_delays_any_order_can_be_kept() {
    for ordering in [Ordering::Key, Ordering::Partition] {
        let broker = broker(&["1"]).await;
        let stack = ServiceBuilder::new()
            .layer(DelayedRetryLayer::new(broker.publisher()).delays([]))
            .service(service_fn(|_: Message| async { Ok::<_, Failure>(()) }));
        let consumer = Consumer::new(broker.source("g", ["t"]).finite(), stack).ordering(ordering);
        assert_eq!(consumer.run().await.unwrap().processed, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn fm36_what_was_held_for_too_long_goes_on_waiting_at_the_broker_and_counts_nothing() {
    let broker = broker(&[]).await;
    let (store, log) = (MemoryStore::new(), Log::new());
    let held = |id: &str| {
        let origin = crate::Origin::Log { system: "memory", topic: "t".into(), partition: 0, offset: 0 };
        let until = Instant::now() + 60 * SECOND;
        Message::builder().payload("x").id(id.to_owned()).origin(origin).hold_until(until).build()
    };
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(layer(&broker))
        .layer(DedupLayer::new(store.clone(), "c"))
        .layer(RetryLayer::fixed(3600 * SECOND).jitter(false).max_attempts(3))
        .service(service_fn({
            let log = log.clone();
            move |message: Message| {
                let at = log.1.elapsed().as_secs();
                log.0.lock().unwrap().push((at, message.attempt()));
                async { Err::<(), _>(Failure::transient("down")) }
            }
        }));
    assert_eq!(stack.clone().oneshot(held("1")).await.unwrap(), Outcome::Deferred);
    assert_eq!(log.all(), [(0, 1)]);
    sleep(31 * SECOND).await;
    let copies = broker.records("t");
    assert_eq!((copies.len(), broker.records("dead").len()), (1, 0));
    assert_eq!(copies[0].headers().get("retry-round"), None);
    assert!(copies[0].headers().contains("retry-not-before"));
    // The copy goes on with what had failed.
    let copy =
        Message::builder().payload("x").headers(copies[0].headers().clone()).hold_until(Instant::now());
    let _ = stack.clone().oneshot(copy.build()).await;
    assert_eq!(log.all().last(), Some(&(91, 2)));

    // Shut down meanwhile, it is handed back as ever.
    let token = tokio_util::sync::CancellationToken::new();
    let cancelled = held("2").with_cancellation(token.clone());
    let waiting = tokio::spawn(stack.oneshot(cancelled));
    sleep(SECOND).await;
    token.cancel();
    assert!(waiting.await.unwrap().unwrap_err().is_cancelled());
    assert_eq!(broker.records("t").len(), 1);
}

/// A rebalance, or a claim that ran out: another owner goes on.
#[tokio::test(start_paused = true)]
async fn what_is_handed_back_for_another_reason_is_not_put_off() {
    let broker = broker(&[]).await;
    let stack = ServiceBuilder::new()
        .layer(layer(&broker))
        .service(service_fn(|_: Message| async { Err::<(), _>(Failure::cancelled("the claim ran out")) }));
    let held_for = |seconds: u32| {
        let origin = crate::Origin::Log { system: "memory", topic: "t".into(), partition: 0, offset: 0 };
        Message::builder().payload("x").origin(origin).hold_until(Instant::now() + seconds * SECOND).build()
    };
    assert!(stack.clone().oneshot(held_for(60)).await.unwrap_err().is_cancelled());
    let token = tokio_util::sync::CancellationToken::new();
    token.cancel();
    assert!(stack.oneshot(held_for(0).with_cancellation(token)).await.unwrap_err().is_cancelled());
    sleep(60 * SECOND).await;
    assert!(broker.records("t").is_empty());
}
