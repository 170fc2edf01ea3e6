//! The whole stack on a real broker: what the source, the layers and the runtime owe each other.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{
    admin, consumer, contents, drive, number, produce, publisher, queue,
    run::{Run, until},
    unique,
};
use consumer_amqp::{AmqpDelivery, AmqpSource, Queue};
use consumer_core::{
    DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, Message, Outgoing, Publisher, RetryLayer,
    dedup::Gate, memory::MemoryStore, message::wire, runtime::Stack,
};
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::Semaphore;
use tower::{ServiceBuilder, service_fn};
use xtask::servers::{RabbitMq, shared_rabbitmq};

type Calls = Arc<Mutex<Vec<(u32, u32, Option<u64>)>>>;

fn note(calls: &Calls, message: &Message) {
    let count = message.native::<AmqpDelivery>().unwrap().delivery_count();
    calls.lock().unwrap().push((number(message), message.attempt(), count));
}

/// A process of its own: it shares the store, and nothing else.
fn process(name: u128, store: &MemoryStore) -> DedupLayer<MemoryStore> {
    DedupLayer::new(store.clone(), "c").as_process(name, Gate::new())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm07_a_busy_message_is_held_and_not_sent_back_to_the_broker() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let (store, gate, calls) = (MemoryStore::new(), Arc::new(Semaphore::new(0)), Calls::default());
    let stack = |name| {
        let (gate, calls) = (gate.clone(), calls.clone());
        let dedup = process(name, &store).lease(Duration::from_millis(600));
        ServiceBuilder::new().layer(dedup).service(service_fn(move |message: Message| {
            note(&calls, &message);
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await.unwrap();
                Ok::<_, Failure>(())
            }
        }))
    };
    produce(&publisher(&url), &queue, [1]).await;
    let first = Run::start(consumer(&url, &queue), stack(1));
    until("the call", || calls.lock().unwrap().len() == 1).await;
    let second = Run::start(consumer(&url, &queue).prefetch(1), stack(2));
    until("the second process", || second.health.status().ready).await;
    // The first has room for more, so the copy may go to either; the last of these is with the second.
    let mut copies = 0;
    while second.health.status().held == 0 {
        produce(&publisher(&url), &queue, [1]).await;
        copies += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Held over several leases of the first one's claim.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let held = second.health.status();
    assert_eq!((held.held, held.executing), (1, 0));
    gate.add_permits(1);
    until("the end of the copy", || second.health.status().held == 0).await;
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!((second.received, second.duplicates), (1, 1), "asked for again without the broker");
    assert_eq!((first.received + second.received, first.processed), (1 + copies, 1));
    assert_eq!(*calls.lock().unwrap(), [(1, 1, None)]);
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm36_a_message_that_waits_is_handed_back_before_the_broker_loses_its_patience() {
    let timeout = Duration::from_secs(6);
    let server = RabbitMq::builder().consumer_timeout(timeout).start().unwrap();
    let url = server.url();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..1).await;
    let (store, calls) = (MemoryStore::new(), Calls::default());
    let failing = |calls: &Calls| {
        let calls = calls.clone();
        ServiceBuilder::new()
            .layer(DeadLetterLayer::new(publisher(&url), format!("{queue}.dead")))
            .layer(process(1, &store))
            .layer(RetryLayer::fixed(Duration::from_secs(3600)).max_attempts(4))
            .service(service_fn(move |message: Message| {
                note(&calls, &message);
                async { Err::<(), _>(Failure::transient("later")) }
            }))
    };
    let source = consumer(&url, &queue).consumer_timeout(timeout);
    let run = Run::start(source, failing(&calls));
    until("the last call", || calls.lock().unwrap().len() == 4).await;
    until("its end", || run.health.status().held == 0).await;
    let report = run.stop().await;
    // Handed back three times: each time it came again, with what it had counted, and was tried once more.
    assert_eq!(*calls.lock().unwrap(), [(0, 1, None), (0, 2, Some(1)), (0, 3, Some(2)), (0, 4, Some(3))]);
    assert_eq!((report.received, report.returned, report.dead_lettered), (4, 3, 1));
    let log = std::fs::read_to_string(server.log()).unwrap();
    assert!(!log.contains("has timed out"), "the broker has closed no channel");

    // Without that: the channel goes, and with it whatever else is held.
    let innocent = unique("q");
    admin(&url).ensure_queue(&*innocent).await.unwrap();
    produce(&publisher(&url), &innocent, 0..2).await;
    let calls = Calls::default();
    let run = Run::start(consumer(&url, &innocent), failing(&calls));
    until("the end of the channel", || !run.health.status().ready && calls.lock().unwrap().len() == 2).await;
    run.stop().await;
    let log = std::fs::read_to_string(server.log()).unwrap();
    assert!(log.contains("has timed out"), "the broker closes the channel of whom it is not told about");
}

/// Fails for good, into a dead-letter queue.
fn failing(url: &str, dead: &str) -> impl Stack + use<> {
    let dead = DeadLetterLayer::new(publisher(url), dead)
        .backoff(Duration::from_millis(50), Duration::from_millis(200));
    let stack = service_fn(|_: Message| async { Err::<(), _>(Failure::permanent("no")) });
    ServiceBuilder::new().layer(dead).service(stack)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm20_fm27_without_its_dead_letter_queue_nothing_is_acked_and_the_source_pauses() {
    let url = shared_rabbitmq();
    let (queue, dead) = (queue(&url).await, unique("dead"));
    produce(&publisher(&url), &queue, 0..3).await;
    let run = Run::start(consumer(&url, &queue), failing(&url, &dead));
    let paused = || run.health.status().reason.is_some_and(|why| why.starts_with("paused"));
    until("the pause", paused).await;
    let report = run.stop().await;
    assert_eq!((report.dead_lettered, report.returned), (0, report.received));

    let run = Run::start(consumer(&url, &queue), failing(&url, &dead));
    let paused = || run.health.status().reason.is_some_and(|why| why.starts_with("paused"));
    until("the pause", paused).await;
    admin(&url).ensure_queue(Queue::dead_letters(&dead)).await.unwrap();
    until("it goes on", || run.health.status().ready && run.health.status().held == 0).await;
    assert_eq!(run.stop().await.dead_lettered, 3);
    let letters = contents(&url, &dead).await;
    let mut numbers: Vec<_> = letters.iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2], "each of them once");
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_dead_letter_queue_goes_while_letters_are_on_their_way() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let dead = format!("{queue}.dead");
    let run = Run::start(consumer(&url, &queue), failing(&url, &dead));
    produce(&publisher(&url), &queue, 0..5).await;
    let five_letters = async || {
        let mut reader = drive(AmqpSource::builder(&url).queue(Queue::dead_letters(&dead)));
        let mut letters = reader.take(5, "five letters").await;
        reader.ack(&letters);
        reader.close().await;
        letters.sort_by_key(|letter| number(&letter.message));
        common::numbers(&letters)
    };
    assert_eq!(five_letters().await, [0, 1, 2, 3, 4]);
    admin(&url).delete_queue(&dead).await.unwrap();
    produce(&publisher(&url), &queue, 5..10).await;
    let paused = || run.health.status().reason.is_some_and(|why| why.starts_with("paused"));
    until("the pause", paused).await;
    admin(&url).ensure_queue(Queue::dead_letters(&dead)).await.unwrap();
    assert_eq!(five_letters().await, [5, 6, 7, 8, 9]);
    until("everything is told", || run.health.status().held == 0).await;
    assert_eq!(run.stop().await.dead_lettered, 10);
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm26_a_dead_letter_keeps_properties_and_the_types_of_its_headers() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let mut table = FieldTable::default();
    let mut nested = FieldTable::default();
    nested.insert("deep".into(), AMQPValue::Boolean(true));
    let theirs = [
        ("number", AMQPValue::LongLongInt(-7)),
        ("flag", AMQPValue::Boolean(true)),
        ("at", AMQPValue::Timestamp(1_750_000_000)),
        ("nested", AMQPValue::FieldTable(nested)),
        ("nothing", AMQPValue::Void),
        ("dead-letter-reason", AMQPValue::LongString("of somebody else".into())),
        ("CC", AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into())),
    ];
    for (name, value) in theirs.clone() {
        table.insert(name.into(), value);
    }
    let properties = BasicProperties::default()
        .with_headers(table)
        .with_message_id("id-1".into())
        .with_correlation_id("c-1".into())
        .with_content_type("text/plain".into())
        .with_reply_to("answers".into())
        .with_type("order".into())
        .with_priority(4)
        .with_expiration("3600000".into())
        .with_user_id("guest".into());
    raw_publish(&url, &queue, b"0", properties).await;
    let dead = format!("{queue}.dead");
    let run = Run::start(consumer(&url, &queue), failing(&url, &dead));
    let mut reader = drive(AmqpSource::builder(&url).queue(Queue::dead_letters(&dead)));
    let got = reader.take(1, "the dead letter").await;
    reader.ack(&got);
    reader.close().await;
    run.stop().await;
    for letter in got.into_iter().map(|delivery| delivery.message) {
        let said = |name| letter.headers().get_str(name).map(str::to_owned);
        assert_eq!(said(wire::DEAD_LETTER_REASON).unwrap(), "permanent");
        assert_eq!(said("dead-letter-source").unwrap(), "amqp");
        assert_eq!(said("dead-letter-queue").unwrap(), queue);
        assert_eq!(said("dead-letter-routing-key").unwrap(), queue);
        assert_eq!(said(wire::DEAD_LETTER_DROPPED).unwrap(), "expiration, user_id, CC");
        let native = letter.native::<AmqpDelivery>().unwrap();
        assert_eq!(
            (native.reply_to(), native.kind(), native.priority()),
            (Some("answers"), Some("order"), Some(4))
        );
        assert_eq!((native.user_id(), said("correlation-id").as_deref()), (None, Some("c-1")));
        assert_eq!(letter.id().map(|id| &id[..]), Some(&b"id-1"[..]));
        // Their types: shown as text, and here by carrying the letter on once more.
        let (number, nested) = (said("number").unwrap(), said("nested").unwrap());
        assert_eq!((number.as_str(), nested.as_str()), ("-7", r#"{"deep":true}"#));
        assert!(letter.headers().contains("nothing") && letter.headers().get("nothing").is_none());
        let types = raw_types(&url, letter).await;
        for (name, value) in theirs.iter().filter(|(name, _)| !["dead-letter-reason", "CC"].contains(name)) {
            assert_eq!(types.inner().get(*name), Some(value), "{name}");
        }
        assert!(!types.contains_key("CC"));
    }
}

async fn raw_publish(url: &str, queue: &str, payload: &[u8], properties: BasicProperties) {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions { nowait: false }).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirm = channel.basic_publish("".into(), queue.into(), options, payload, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

/// The headers as they are on the wire when the message is published on.
async fn raw_types(url: &str, message: Message) -> FieldTable {
    let queue = queue(url).await;
    publisher(url).publish(Outgoing::copy(queue.as_str(), message)).await.unwrap();
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = lapin::options::BasicGetOptions { no_ack: true };
    let got = channel.basic_get(queue.as_str().into(), options).await.unwrap().unwrap();
    got.properties.headers().clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm22_with_one_active_consumer_a_key_waits_for_its_retries_and_other_keys_go_on() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let source = || AmqpSource::builder(&url).queue(Queue::quorum(&name).single_active_consumer());
    admin(&url).ensure_queue(Queue::quorum(&name).single_active_consumer()).await.unwrap();
    let publisher = publisher(&url);
    for n in 0..20_u32 {
        let message = Message::builder().payload(n.to_string()).key(if n % 2 == 0 { "even" } else { "odd" });
        publisher.publish(Outgoing::new(&*name, message.build())).await.unwrap();
    }
    let (done, failures) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let (seen, failed) = (done.clone(), failures.clone());
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::fixed(Duration::from_millis(300)).max_attempts(5))
        .service(service_fn(move |message: Message| {
            let fails = number(&message) == 4 && failed.fetch_add(1, Relaxed) < 2;
            if !fails {
                seen.lock().unwrap().push(number(&message));
            }
            async move { if fails { Err(Failure::transient("not yet")) } else { Ok(()) } }
        }));
    let run = Run::start_ordered(source(), stack, consumer_core::runtime::Ordering::Key);
    until("all", || done.lock().unwrap().len() == 20).await;
    run.stop().await;
    let done = done.lock().unwrap();
    let of = |rest| done.iter().copied().filter(|n| n % 2 == rest).collect::<Vec<_>>();
    assert_eq!(of(0), (0..20).step_by(2).collect::<Vec<_>>());
    assert_eq!(of(1), (1..20).step_by(2).collect::<Vec<_>>());
    let (fourth, last_odd) = (done.iter().position(|n| *n == 4), done.iter().position(|n| *n == 19));
    assert!(last_odd < fourth, "the other key did not wait: {done:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn with_an_order_nothing_is_handed_back_over_a_handler_that_takes_its_time() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let described = Queue::quorum(&name).single_active_consumer();
    admin(&url).ensure_queue(described.clone()).await.unwrap();
    produce(&publisher(&url), &name, 0..2).await;
    let calls = Calls::default();
    let seen = calls.clone();
    let stack = service_fn(move |message: Message| {
        note(&seen, &message);
        async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Ok::<_, Failure>(())
        }
    });
    let source = AmqpSource::builder(&url).queue(described).consumer_timeout(Duration::from_secs(2));
    let run = Run::start_ordered(source, stack, consumer_core::runtime::Ordering::Partition);
    until("both calls", || calls.lock().unwrap().len() == 2).await;
    until("their end", || run.health.status().held == 0).await;
    assert_eq!(run.stop().await.processed, 2);
    assert_eq!(*calls.lock().unwrap(), [(0, 1, None), (1, 1, None)]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm10_fm34_a_delayed_retry_waits_at_the_broker_over_a_restart_of_everybody() {
    let server = RabbitMq::start().unwrap();
    let url = server.url();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..3).await;
    let (store, calls) = (MemoryStore::new(), Calls::default());
    let stack = |name| {
        let calls = calls.clone();
        ServiceBuilder::new()
            .layer(DeadLetterLayer::new(publisher(&url), format!("{queue}.dead")))
            .layer(
                DelayedRetryLayer::new(publisher(&url))
                    .delays([Duration::from_secs(2), Duration::from_secs(12)]),
            )
            .layer(process(name, &store))
            .layer(RetryLayer::fixed(Duration::from_millis(10)).max_attempts(2))
            .service(service_fn(move |message: Message| {
                calls.lock().unwrap().push((number(&message), message.attempt(), None));
                let fails = message.attempt() < 4 || number(&message) == 2;
                async move { if fails { Err(Failure::transient("down")) } else { Ok(()) } }
            }))
    };
    let first = Run::start(consumer(&url, &queue), stack(1));
    // Two calls at once, the third after two seconds.
    until("the third calls", || calls.lock().unwrap().len() == 9).await;
    until("their copies", || first.health.status().held == 0).await;
    assert_eq!(first.stop().await.deferred, 6);
    assert_eq!(admin(&url).depth(&format!("{queue}.retry.12s")).await.unwrap(), Some(3));
    server.sync().unwrap();
    server.kill();
    server.start_again().unwrap();
    let second = Run::start(consumer(&url, &queue), stack(2));
    until("the fourth calls", || calls.lock().unwrap().len() == 12).await;
    until("their end", || second.health.status().held == 0).await;
    let report = second.stop().await;
    assert_eq!((report.processed, report.dead_lettered), (2, 1), "{report:?}");
    for n in 0..3 {
        let attempts: Vec<u32> =
            calls.lock().unwrap().iter().filter(|call| call.0 == n).map(|call| call.1).collect();
        assert_eq!(attempts, [1, 2, 3, 4], "message {n}: one chain, and the count goes on");
    }
    let dead = contents(&url, &format!("{queue}.dead")).await.remove(0);
    let said = |name| dead.headers().get_str(name).map(str::to_owned);
    assert_eq!(
        (said("dead-letter-attempts").as_deref(), said("retry-round").as_deref()),
        (Some("4"), Some("2"))
    );
    assert_eq!(said("retry-queue").as_deref(), Some(queue.as_str()));
}
