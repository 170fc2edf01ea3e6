//! The whole stack on a real broker: what the source, the layers and the runtime owe each other.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{LIMIT, contents, left, member, number, place, produce, publisher, raw, topic, unique};
use consumer_core::{
    Consumer, DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, IdempotencyKey, Message, Outgoing,
    Publisher, Report, RetryLayer,
    dedup::Gate,
    memory::MemoryStore,
    message::wire,
    runtime::{Health, Stack},
};
use consumer_kafka::{GroupProtocol, KafkaAdmin, KafkaSourceBuilder};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tower::{ServiceBuilder, service_fn};
use xtask::servers::shared_kafka;

/// A consumer at work, stopped by hand.
struct Run {
    stop: Arc<Notify>,
    health: Health,
    done: JoinHandle<Report>,
}

impl Run {
    fn start(source: KafkaSourceBuilder, stack: impl Stack) -> Self {
        let stop = Arc::new(Notify::new());
        let told = stop.clone();
        let consumer = Consumer::new(source.build().unwrap(), stack)
            .drain_timeout(Duration::from_millis(100))
            .shutdown(async move { told.notified().await });
        let health = consumer.health();
        let done = tokio::spawn(async move { consumer.run().await.unwrap() });
        Self { stop, health, done }
    }

    async fn stop(self) -> Report {
        self.stop.notify_one();
        timeout(LIMIT, self.done).await.expect("it stops").unwrap()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

type Calls = Arc<Mutex<BTreeMap<u32, Vec<(char, u32)>>>>;

/// Even numbers fail at the first member, for so long that their backoff does not end by itself; odd ones do not end
/// there at all, so that a partition takes its time to go.
fn slow_or_failing(name: char, store: &MemoryStore, calls: &Calls) -> impl Stack + use<> {
    let process = u128::from(u32::from(name));
    let calls = calls.clone();
    ServiceBuilder::new()
        .layer(
            DedupLayer::new(store.clone(), "c")
                .key(IdempotencyKey::position())
                .as_process(process, Gate::new()),
        )
        .layer(RetryLayer::fixed(Duration::from_millis(1)).max_attempts(5))
        .service(service_fn(move |message: Message| {
            calls.lock().unwrap().entry(number(&message)).or_default().push((name, message.attempt()));
            async move {
                match (name, number(&message) % 2) {
                    ('a', 0) => Err(Failure::transient("later").with_retry_after(Duration::from_secs(3600))),
                    ('a', _) => std::future::pending().await,
                    _ => Ok(()),
                }
            }
        }))
}

async fn a_backoff_is_cut(protocol: GroupProtocol) {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 2).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..32).await;
    let (store, calls) = (MemoryStore::new(), Calls::default());
    let source = || {
        consumer_kafka::KafkaSource::builder(&brokers)
            .group(&group)
            .topic(&topic)
            .group_protocol(protocol)
            .drain(Duration::from_millis(500))
    };
    let a = Run::start(source(), slow_or_failing('a', &store, &calls));
    until("every first call", || calls.lock().unwrap().len() == 32).await;

    // Takes one of the two partitions away, from the middle of all those backoffs.
    let b = Run::start(source(), slow_or_failing('b', &store, &calls));
    let moved = || calls.lock().unwrap().values().filter(|calls| calls.len() > 1).count();
    let in_partition =
        |messages: &[Message], wanted| messages.iter().filter(|message| place(message).0 == wanted).count();
    let all = contents(&brokers, &topic, 32).await;
    let sizes = [in_partition(&all, 0), in_partition(&all, 1)];
    until("a partition has moved", || sizes.contains(&moved())).await;
    let first = a.stop().await;
    until("everything was done", || moved() == 32).await;
    let second = b.stop().await;

    for (number, calls) in calls.lock().unwrap().iter() {
        // A failed call counts; one that was cut off counts nothing.
        let expected = if number % 2 == 0 { [('a', 1), ('b', 2)] } else { [('a', 1), ('b', 1)] };
        assert_eq!((calls.len(), &calls[..2]), (2, &expected[..]), "message {number}");
    }
    assert_eq!((first.processed, first.returned), (0, first.received));
    assert_eq!((second.processed, second.received), (32, 32));
    assert!(left(&brokers, &topic, &group).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm32_a_backoff_that_a_rebalance_cuts_is_continued_by_the_new_owner() {
    a_backoff_is_cut(GroupProtocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm32_with_the_consumer_protocol() {
    a_backoff_is_cut(GroupProtocol::Consumer).await;
}

/// Fails for good as long as it is told to, into a dead-letter topic.
fn failing(brokers: &str, dead: &str) -> impl Stack + use<> {
    let dead = DeadLetterLayer::new(publisher(brokers), dead)
        .backoff(Duration::from_millis(50), Duration::from_millis(200));
    let stack = service_fn(|_: Message| async { Err::<(), _>(Failure::permanent("no")) });
    ServiceBuilder::new().layer(dead).service(stack)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm20_fm27_without_its_dead_letter_topic_nothing_is_acked_and_the_source_pauses() {
    let brokers = shared_kafka();
    let (source, dead, group) = (topic(&brokers, 1).await, unique("dead"), unique("g"));
    produce(&publisher(&brokers), &source, 0..3).await;
    let run = Run::start(member(&brokers, &source, &group), failing(&brokers, &dead));
    until("the pause", || run.health.status().reason.is_some_and(|why| why.starts_with("paused"))).await;
    let report = run.stop().await;
    assert_eq!((report.dead_lettered, report.returned), (0, report.received));
    assert_eq!(left(&brokers, &source, &group).await, [0, 1, 2], "nothing was acked");

    let run = Run::start(member(&brokers, &source, &group), failing(&brokers, &dead));
    until("the pause", || run.health.status().reason.is_some_and(|why| why.starts_with("paused"))).await;
    KafkaAdmin::new(&brokers).unwrap().ensure_topic(&dead, 1, &[]).await.unwrap();
    let letters = contents(&brokers, &dead, 3).await;
    until("it goes on", || run.health.status().ready).await;
    assert_eq!(run.stop().await.dead_lettered, 3);
    let mut letters: Vec<_> = letters.iter().map(number).collect();
    letters.sort_unstable();
    assert_eq!(letters, [0, 1, 2]);
    assert!(left(&brokers, &source, &group).await.is_empty());
    assert_eq!(contents(&brokers, &dead, 3).await.len(), 3, "each of them once");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm26_a_large_header_and_one_that_cannot_be_read_reach_the_dead_letters() {
    let brokers = shared_kafka();
    let (source, dead) = (topic(&brokers, 1).await, topic(&brokers, 1).await);
    let large = vec![b'x'; 1 << 20];
    let message = Message::builder().payload("0").key("k").header("large", large.clone()).build();
    publisher(&brokers).publish(Outgoing::new(&*source, message)).await.unwrap();
    raw::produce(&brokers, &source, b"1", &[(b"good", b"1"), (b"b\xffd", b"2")]);
    let called = Arc::new(AtomicBool::new(false));
    let seen = called.clone();
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(publisher(&brokers), &*dead))
        .layer(DedupLayer::new(MemoryStore::new(), "c").key(IdempotencyKey::position()))
        .service(service_fn(move |message: Message| {
            seen.fetch_or(number(&message) == 1, Relaxed);
            async { Err::<(), _>(Failure::permanent("no")) }
        }));
    let run = Run::start(member(&brokers, &source, &unique("g")), stack);
    let mut letters = contents(&brokers, &dead, 2).await;
    run.stop().await;
    letters.sort_by_key(number);
    let said = |letter: &Message, name| letter.headers().get_str(name).map(str::to_owned);
    assert_eq!(letters[0].headers().get("large").unwrap()[..], large[..]);
    assert_eq!(letters[0].key().unwrap()[..], b"k"[..]);
    assert_eq!(said(&letters[0], wire::DEAD_LETTER_REASON).unwrap(), "permanent");
    assert_eq!(said(&letters[1], wire::DEAD_LETTER_REASON).unwrap(), "undecodable");
    assert_eq!(said(&letters[1], "good").unwrap(), "1");
    let dropped = said(&letters[1], wire::DEAD_LETTER_DROPPED).unwrap();
    assert!(dropped.contains("header 2 of 2"), "{dropped}");
    assert!(!called.load(Relaxed), "no handler is given a message that cannot be read as a whole");
}

async fn a_delayed_retry_outlives_its_process(protocol: GroupProtocol) {
    let brokers = shared_kafka();
    let (topic, dead, group) = (topic(&brokers, 2).await, topic(&brokers, 1).await, unique("g"));
    produce(&publisher(&brokers), &topic, 0..3).await;
    let (store, calls) = (MemoryStore::new(), Calls::default());
    let delays = [Duration::from_secs(2), Duration::from_secs(8)];
    let source = || {
        let builder = consumer_kafka::KafkaSource::builder(&brokers).group(&group).topic(&topic);
        builder.group_protocol(protocol).delays(delays)
    };
    let stack = |name| {
        let (calls, publisher) = (calls.clone(), source().build().unwrap().publisher().unwrap());
        ServiceBuilder::new()
            .layer(DeadLetterLayer::new(publisher.clone(), &*dead))
            .layer(DelayedRetryLayer::new(publisher).delays(delays))
            .layer(
                DedupLayer::new(store.clone(), "c")
                    .key(IdempotencyKey::position())
                    .as_process(u128::from(u32::from(name)), Gate::new()),
            )
            .layer(RetryLayer::fixed(Duration::from_millis(10)).max_attempts(2))
            .service(service_fn(move |message: Message| {
                calls.lock().unwrap().entry(number(&message)).or_default().push((name, message.attempt()));
                let fails = message.attempt() < 4 || number(&message) == 2;
                async move { if fails { Err(Failure::transient("down")) } else { Ok(()) } }
            }))
    };
    let count = || calls.lock().unwrap().values().map(Vec::len).sum::<usize>();
    let first = Run::start(source(), stack('a'));
    // Two calls at once, the third after two seconds.
    until("the third calls", || count() == 9).await;
    until("their copies", || first.health.status().held == 0).await;
    assert_eq!(first.stop().await.deferred, 6);
    let waiting = contents(&brokers, &format!("{group}.retry.8s"), 3).await;
    assert!(waiting.iter().all(|copy| copy.headers().get_str(wire::RETRY_ROUND) == Some("2")));
    let second = Run::start(source(), stack('b'));
    until("the fourth calls", || count() == 12).await;
    until("their end", || second.health.status().held == 0).await;
    let report = second.stop().await;
    assert_eq!((report.processed, report.dead_lettered), (2, 1), "{report:?}");
    for (number, calls) in calls.lock().unwrap().iter() {
        let chain = [('a', 1), ('a', 2), ('a', 3), ('b', 4)];
        assert_eq!(calls[..], chain, "message {number}: one chain, and the count goes on");
    }
    let letter = contents(&brokers, &dead, 1).await.remove(0);
    let said = |name| letter.headers().get_str(name).map(str::to_owned);
    assert_eq!(said(wire::DEAD_LETTER_ATTEMPTS).as_deref(), Some("4"));
    assert_eq!(said("dead-letter-topic"), Some(topic.clone()), "where it came from at first");
    for topic in [topic, format!("{group}.retry.2s"), format!("{group}.retry.8s")] {
        assert!(left(&brokers, &topic, &group).await.is_empty(), "{topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm10_fm34_a_delayed_retry_waits_at_the_broker_and_outlives_its_process() {
    a_delayed_retry_outlives_its_process(GroupProtocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm10_fm34_with_the_consumer_protocol() {
    a_delayed_retry_outlives_its_process(GroupProtocol::Consumer).await;
}
