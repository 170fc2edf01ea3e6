//! Connections that break, servers that go, queues that vanish.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    LIMIT, admin, by_proxy, connected, consumer, contents, drive, number, numbers, produce, publisher, queue,
    run::{Run, until},
};
use consumer_amqp::{AmqpPublisher, AmqpSource};
use consumer_core::{
    DedupLayer, Event, Failure, Message, Outgoing, Publisher, Settlement, Source, memory::MemoryStore,
    runtime::Stack,
};
use consumer_testing::{
    naive::{Naive, Order, Seen},
    proxy::Direction,
};
use tokio::sync::Semaphore;
use tower::{Service, ServiceBuilder, service_fn};
use xtask::servers::{RabbitMq, shared_rabbitmq};

/// Calls by number, each of which waits until it is let through.
#[derive(Clone)]
struct Gated {
    calls: Arc<Mutex<BTreeMap<u32, u32>>>,
    gate: Arc<Semaphore>,
}

impl Gated {
    fn new() -> Self {
        Self { calls: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }

    fn open(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().values().sum::<u32>() as usize
    }

    fn handler(
        &self,
    ) -> impl Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + use<>
    {
        let gated = self.clone();
        service_fn(move |message: Message| {
            *gated.calls.lock().unwrap().entry(number(&message)).or_default() += 1;
            let gate = gated.gate.clone();
            async move {
                let _ = gate.acquire().await.unwrap();
                Ok::<_, Failure>(())
            }
        })
    }

    fn stack(&self) -> impl Stack + use<> {
        ServiceBuilder::new().layer(DedupLayer::new(MemoryStore::new(), "c")).service(self.handler())
    }

    fn each_once(&self, count: u32) {
        let expected: BTreeMap<u32, u32> = (0..count).map(|n| (n, 1)).collect();
        assert_eq!(*self.calls.lock().unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm15_a_message_whose_connection_broke_joins_the_one_that_runs() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..20).await;
    let gated = Gated::new();
    let run = Run::start(consumer(&url, &queue), gated.stack());
    until("every call", || gated.calls() == 20).await;
    for cut in 1..=3 {
        assert_eq!(proxy.cut().await, 1);
        until("the end of the connection", || !run.health.status().ready).await;
        proxy.until_connections(1 + cut).await;
        until("the next connection", || run.health.status().ready).await;
    }
    // What came again over the third connection waits for the calls that began over the first.
    gated.open();
    until("everything is told", || run.health.status().held == 0).await;
    let report = run.stop().await;
    gated.each_once(20);
    assert_eq!(report.processed, 20);
    assert_eq!(report.received, report.processed + report.duplicates + report.returned, "{report:?}");
    assert!(report.duplicates >= 20, "the ack that counts is that of the duplicate: {report:?}");
    assert_eq!(admin(&direct).depth(&queue).await.unwrap(), Some(0), "every new tag was acked");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm15_a_naive_consumer_runs_everything_a_second_time() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..20).await;
    let gated = Gated::new();
    let naive = Naive::new(Order::CheckThenMark, Seen::new(), gated.handler());
    let run = Run::start(consumer(&url, &queue), naive);
    until("every call", || gated.calls() == 20).await;
    proxy.cut().await;
    until("every call once more, while the first ones run", || gated.calls() == 40).await;
    gated.open();
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm16_an_ack_that_finds_its_channel_dead_is_unsettled_and_the_message_comes_again() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..4).await;
    let mut member = drive(consumer(&url, &queue)).keep_scopes();
    let got = member.take(4, "all").await;
    proxy.cut().await;
    // Before anybody has noticed, and after.
    member.ack(&got[..2]);
    let lost = |events: &[Event]| events.contains(&Event::Disconnected);
    assert!(member.wait_for(lost).await);
    member.ack(&got[2..3]);
    member.settle(got[3].tag, Settlement::Nack);
    let again = member.take(4, "all of them again").await;
    assert_eq!(numbers(&again), [0, 1, 2, 3]);
    assert!(again.iter().all(|delivery| delivery.tag.scope != got[0].tag.scope));
    assert_eq!(member.unsettled(got[0].tag.scope), 3, "handing back is no settlement that could be lost");
    // A tag of the channel that is gone names nothing on the new one.
    member.ack(&got);
    let flushed = std::future::poll_fn(|cx| member.source().poll_flush(cx)).await;
    assert!(flushed.unwrap_err().to_string().contains("come again"), "a flush does not hide what was lost");
    member.flush().await;
    member.source().release(got[0].tag.scope);
    drop(member);
    let mut next = drive(consumer(&direct, &queue));
    let again = next.take(4, "all of them once more: those tags have acked nothing").await;
    assert_eq!(numbers(&again), [0, 1, 2, 3]);
    next.ack(&again);
    next.close().await;
    assert_eq!(admin(&direct).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_ack_that_the_network_has_swallowed_costs_a_duplicate_and_no_message() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..3).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(3, "all").await;
    let before = proxy.counts().received(Direction::ToServer);
    proxy.hang(Direction::ToServer);
    member.ack(&got);
    poll_once(&mut member).await;
    proxy.until_received(Direction::ToServer, before + 1).await;
    proxy.cut().await;
    let lost = |events: &[Event]| events.contains(&Event::Disconnected);
    assert!(member.wait_for(lost).await);
    let flushed = std::future::poll_fn(|cx| member.source().poll_flush(cx)).await;
    assert!(flushed.is_err(), "it was written, and whether it arrived is not known");
    proxy.resume(Direction::ToServer);
    let again = member.take(3, "all of them again").await;
    assert_eq!(numbers(&again), [0, 1, 2]);
    member.ack(&again);
    member.close().await;
    assert_eq!(admin(&direct).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_publish_whose_confirm_was_lost_is_sent_again_under_its_id() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let publisher = publisher(&url);
    produce(&publisher, &queue, 0..1).await;
    proxy.hang(Direction::ToClient);
    let held = proxy.counts().received(Direction::ToClient);
    let sent: Vec<_> = (1..=5_u32)
        .map(|n| {
            let message =
                Message::builder().payload(n.to_string()).header("message-id", n.to_string()).build();
            publisher.publish(Outgoing::new(queue.as_str(), message))
        })
        .collect();
    proxy.until_received(Direction::ToClient, held + 1).await;
    proxy.cut().await;
    proxy.resume(Direction::ToClient);
    for answer in sent {
        answer.await.unwrap();
    }
    let got = contents(&direct, &queue).await;
    let mut seen: Vec<u32> = got.iter().map(number).collect();
    assert!(seen.len() > 6, "stored twice, since the broker had them before the cut: {seen:?}");
    for message in &got[1..] {
        assert_eq!(message.id().map(|id| &id[..]), Some(message.payload().as_ref()));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_confirm_that_never_comes_is_an_error_when_the_time_is_up() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let publisher = AmqpPublisher::builder(&url).timeout(Duration::from_secs(1)).build().unwrap();
    produce(&publisher, &queue, 0..1).await;
    proxy.hang(Direction::Both);
    let message = Message::builder().payload("1").build();
    let error = publisher.publish(Outgoing::new(queue.as_str(), message)).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("in time"), "{error}");
    proxy.resume(Direction::Both);
    // The publisher goes on over the same connection.
    produce(&publisher, &queue, 2..3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_is_killed_and_comes_back_loses_nothing_and_doubles_nothing() {
    const ALL: u32 = 600;
    let server = RabbitMq::start().unwrap();
    let url = server.url();
    let queue = queue(&url).await;
    let publisher = AmqpPublisher::builder(&url).timeout(Duration::from_secs(120)).build().unwrap();
    produce(&publisher, &queue, 0..ALL / 2).await;
    let gated = Gated::new();
    let run = Run::start(consumer(&url, &queue).prefetch(50), gated.stack());
    until("some calls", || gated.calls() >= 50).await;
    gated.gate.add_permits(60);
    until("more calls", || gated.calls() >= 100).await;
    // Else a version like this one may lose the queue: it was declared moments ago.
    server.sync().unwrap();
    server.kill();
    until("the end of the connection", || !run.health.status().ready).await;
    // Asked for while there is no broker.
    let second = tokio::spawn({
        let (publisher, queue) = (publisher.clone(), queue.clone());
        async move { produce(&publisher, &queue, ALL / 2..ALL).await }
    });
    server.start_again().unwrap();
    second.await.unwrap();
    gated.open();
    until("every call", || gated.calls.lock().unwrap().len() == ALL as usize).await;
    until("everything is told", || run.health.status().held == 0).await;
    let report = run.stop().await;
    gated.each_once(ALL);
    assert_eq!(report.processed, u64::from(ALL), "{report:?}");
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_queue_that_is_deleted_under_its_consumer_is_declared_anew() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..2).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(2, "all").await;
    admin(&url).delete_queue(&queue).await.unwrap();
    let back = |events: &[Event]| events.iter().filter(|event| **event == Event::Connected).count() == 2;
    assert!(member.wait_for(back).await, "{:?}", member.events);
    assert!(member.events.contains(&Event::Disconnected));
    // Settling what went with the queue harms nobody.
    member.ack(&got);
    produce(&publisher(&url), &queue, 2..4).await;
    let got = member.take(2, "what came later").await;
    assert_eq!(numbers(&got), [2, 3]);
    member.ack(&got);
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_hangs_is_noticed_by_the_heartbeat() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let mut member = drive(consumer(&url, &queue).heartbeat(Duration::from_secs(1)));
    connected(&mut member).await;
    proxy.hang(Direction::Both);
    let lost = |events: &[Event]| events.contains(&Event::Disconnected);
    assert!(member.wait_for(lost).await, "{:?}", member.events);
    proxy.cut().await;
    proxy.resume(Direction::Both);
    produce(&publisher(&direct), &queue, 0..1).await;
    let got = member.take(1, "over the next connection").await;
    member.ack(&got);
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_close_while_the_broker_is_away_ends() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..1).await;
    let gated = Gated::new();
    let run = Run::start(consumer(&url, &queue), gated.stack());
    until("the call", || gated.calls() == 1).await;
    proxy.refuse();
    proxy.cut().await;
    until("the end of the connection", || !run.health.status().ready).await;
    let begin = std::time::Instant::now();
    let report = run.stop().await;
    assert!(begin.elapsed() < LIMIT / 2);
    assert_eq!((report.received, report.returned), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn acks_behind_a_message_that_is_held_reach_the_broker_all_the_same() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..5).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(5, "all").await;
    let before = proxy.counts().received(Direction::ToServer);
    // Fewer than would go out for their number.
    member.ack(&got[1..]);
    let told = async { proxy.until_received(Direction::ToServer, before + 4 * ACK_BYTES).await };
    tokio::select! {
        () = told => {}
        () = std::future::poll_fn(|cx| { while member.poll(cx).is_ready() {} std::task::Poll::<()>::Pending }) => {}
    }
    member.flush().await;
    proxy.cut().await;
    let again = member.take(1, "the one that was held").await;
    assert_eq!(numbers(&again), [0]);
    member.ack(&again);
    member.close().await;
    assert_eq!(admin(&direct).depth(&queue).await.unwrap(), Some(0));
}

/// A frame of `basic.ack`: header 7, method 4, tag 8, flag 1, end 1.
const ACK_BYTES: u64 = 21;

async fn poll_once(member: &mut consumer_testing::drive::Driven<AmqpSource>) {
    std::future::poll_fn(|cx| {
        while member.poll(cx).is_ready() {}
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_close_does_not_hide_that_acks_were_lost() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..3).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(3, "all").await;
    proxy.refuse();
    proxy.cut().await;
    member.ack(&got);
    assert!(member.wait_for(|events| events.contains(&Event::Disconnected)).await);
    let closed = std::future::poll_fn(|cx| member.source().poll_close(cx)).await;
    assert!(closed.unwrap_err().to_string().contains("come again"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_flush_that_has_begun_does_not_answer_for_what_is_acked_later() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..2).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(2, "all").await;
    member.ack(&got[..1]);
    let mut later = Some(got[1].tag);
    let flushed = std::future::poll_fn(|cx| {
        let flushed = member.source().poll_flush(cx);
        if flushed.is_pending()
            && let Some(tag) = later.take()
        {
            member.source().settle(tag, Settlement::Ack);
            return member.source().poll_flush(cx);
        }
        flushed
    });
    flushed.await.unwrap();
    assert_eq!(later, None);
    drop(member);
    let mut next = drive(consumer(&url, &queue));
    produce(&publisher(&url), &queue, 2..3).await;
    assert_eq!(numbers(&next.take(1, "what comes next").await), [2]);
    next.close().await;
}
