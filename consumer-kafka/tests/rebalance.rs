//! Partitions that come and go.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::*;
use consumer_core::{Event, Settlement, Source};
use consumer_kafka::{GroupProtocol, KafkaSource, KafkaSourceBuilder};
use tokio::time::timeout;
use xtask::servers::{Kafka, shared_kafka};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm14_a_revocation_waits_for_what_runs_and_commits_it() {
    let brokers = shared_kafka();
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let topic = topic(&brokers, 2).await;
        let group = unique("g");
        produce(&publisher(&brokers), &topic, 0..20).await;
        let build = || {
            KafkaSource::builder(&brokers)
                .group(&group)
                .topic(&topic)
                .group_protocol(protocol)
                .drain(Duration::from_secs(30))
                .commit_every(Duration::from_secs(600))
        };
        let mut first = Member::new(build());
        let got = first.receive(20).await;
        let mut second = Member::new(build());
        // The second member drives its own connection while the first is told to give a partition up.
        let joined = tokio::spawn(async move {
            let got = second.receive_for(Duration::from_secs(8)).await;
            (second, got)
        });
        let closing = first.until(|event| matches!(event, Event::Closing { .. })).await;
        let Event::Closing { scope, within } = closing else { unreachable!() };
        assert_eq!(within, Duration::from_secs(30));
        let (ends, stays): (Vec<_>, Vec<_>) = got.into_iter().partition(|d| d.tag.scope == scope);
        assert!(!ends.is_empty() && !stays.is_empty());
        // What finishes while it is closing counts, and the new owner starts behind it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        first.ack(&ends);
        first.source.release(scope);
        let (second, got) = {
            let mut joined = joined;
            loop {
                tokio::select! {
                    done = &mut joined => break done.unwrap(),
                    event = first.event(0) => { event.unwrap(); }
                }
            }
        };
        assert!(got.is_empty(), "{protocol:?}: {} messages came twice", got.len());
        assert!(second.events.contains(&Event::Connected));
        // fm14: a late completion of the old assignment changes nothing.
        first.ack(&ends);
        first.close().await.unwrap();
        second.close().await.unwrap();
        let again = left(&brokers, &topic, &group).await;
        let mut kept: Vec<_> = stays.iter().map(|d| number(&d.message)).collect();
        kept.sort_unstable();
        assert_eq!(again, kept, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_revocation_does_not_wait_longer_than_the_drain() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 2).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..20).await;
    let build = || member(&brokers, &topic, &group).drain(Duration::from_millis(500));
    let mut first = Member::new(build());
    let got = first.receive(20).await;
    let mut second = Member::new(build());
    let joined = tokio::spawn(async move { second.receive(1).await });
    let Event::Closing { scope, .. } = first.until(|e| matches!(e, Event::Closing { .. })).await else {
        unreachable!()
    };
    // Nothing is released; the messages go to the second member all the same.
    let again = timeout(LIMIT, joined).await.unwrap().unwrap();
    let ends: BTreeSet<_> = got.iter().filter(|d| d.tag.scope == scope).map(|d| number(&d.message)).collect();
    assert!(ends.contains(&number(&again[0].message)));
}

/// Shared by the members of a run: what was seen how often.
type Ledger = Arc<Mutex<BTreeMap<u32, u32>>>;

/// Takes, acks and hands over as the runtime would, until told to stop; then closes.
async fn work(builder: KafkaSourceBuilder, ledger: Ledger, stop: Arc<AtomicBool>) {
    let mut member = Member::new(builder);
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match timeout(Duration::from_millis(20), member.event(64)).await {
            Ok(Ok(Event::Closing { scope, .. })) => {
                // What runs is finished, so that nothing is done twice.
                held.append(&mut member.got);
                finish(&mut member.source, &mut held, &ledger);
                member.source.release(scope);
            }
            Ok(Ok(_)) => held.append(&mut member.got),
            Ok(Err(error)) => panic!("{error:?}"),
            Err(_) => finish(&mut member.source, &mut held, &ledger),
        }
        if held.len() > 100 || !held.is_empty() && held.len() % 3 == 0 {
            tokio::task::yield_now().await;
            finish(&mut member.source, &mut held, &ledger);
        }
    }
    held.append(&mut member.got);
    finish(&mut member.source, &mut held, &ledger);
    member.close().await.unwrap();
}

fn finish(source: &mut KafkaSource, held: &mut Vec<consumer_core::Delivery>, ledger: &Ledger) {
    for delivery in held.drain(..) {
        *ledger.lock().unwrap().entry(number(&delivery.message)).or_default() += 1;
        source.settle(delivery.tag, Settlement::Ack);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm32_members_join_and_leave_while_20_000_messages_flow() {
    let brokers = shared_kafka();
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let topic = topic(&brokers, 4).await;
        let group = unique("g");
        let count = 20_000;
        let build = || KafkaSource::builder(&brokers).group(&group).topic(&topic).group_protocol(protocol);
        let (ledger, end) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
        let first = tokio::spawn(work(build(), ledger.clone(), end.clone()));
        let produced = tokio::spawn({
            let (publisher, topic) = (publisher(&brokers), topic.clone());
            async move {
                for start in (0..count).step_by(500) {
                    produce(&publisher, &topic, start..start + 500).await;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            }
        });
        while !produced.is_finished() {
            let stop = Arc::new(AtomicBool::new(false));
            let second = tokio::spawn(work(build(), ledger.clone(), stop.clone()));
            tokio::time::sleep(Duration::from_secs(4)).await;
            stop.store(true, Ordering::Relaxed);
            timeout(LIMIT, second).await.unwrap().unwrap();
        }
        produced.await.unwrap();
        let all = async {
            while ledger.lock().unwrap().len() < count as usize {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let complete = timeout(LIMIT, all).await;
        end.store(true, Ordering::Relaxed);
        timeout(LIMIT, first).await.unwrap().unwrap();
        let ledger = ledger.lock().unwrap();
        let doubled = ledger.values().filter(|times| **times > 1).count();
        assert!(complete.is_ok(), "{protocol:?}: {} of {count} came", ledger.len());
        assert_eq!(doubled, 0, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm14_nothing_is_committed_for_a_partition_that_was_lost() {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..5).await;
    let mut first = Member::new(
        member(&brokers, &topic, &group)
            .property("session.timeout.ms", "3000")
            .commit_every(Duration::from_secs(600)),
    );
    let got = first.receive(5).await;
    // Without a broker the session runs out.
    kafka.kill();
    let closing = first.until(|event| matches!(event, Event::Closing { .. })).await;
    let Event::Closing { scope, within } = closing else { unreachable!() };
    assert_eq!(within, Duration::ZERO);
    first.ack(&got);
    first.source.release(scope);
    first.ack(&got);
    kafka.start_again().unwrap();
    // It joins again and gets all of them again.
    let again = first.receive(5).await;
    assert_eq!(again.iter().map(|d| number(&d.message)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_ne!(again[0].tag.scope, got[0].tag.scope);
    assert!(first.events.contains(&Event::Disconnected), "{:?}", first.events);
    first.ack(&again);
    first.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_flush_fails_once_when_what_was_acked_went_with_its_partition() {
    tokio::join!(flushes_what_is_lost(true), flushes_what_is_lost(false));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_close_fails_when_what_was_acked_goes_with_its_partition_meanwhile() {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..5).await;
    let mut member =
        Member::new(member(&brokers, &topic, &unique("g")).property("session.timeout.ms", "3000"));
    let got = member.receive(5).await;
    kafka.kill();
    member.ack(&got);
    let told = member.close().await.unwrap_err().to_string();
    assert!(told.contains("a partition was taken away"), "{told}");
}

async fn flushes_what_is_lost(asked_before: bool) {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..5).await;
    let mut first = Member::new(
        member(&brokers, &topic, &group)
            .property("session.timeout.ms", "3000")
            .commit_every(Duration::from_secs(600)),
    );
    let got = first.receive(5).await;
    kafka.kill();
    if asked_before {
        first.ack(&got);
        let flushed = poll_fn(|cx| std::task::Poll::Ready(first.source.poll_flush(cx))).await;
        assert!(flushed.is_pending());
    }
    let closing = first.until(|event| matches!(event, Event::Closing { .. })).await;
    let Event::Closing { scope, .. } = closing else { unreachable!() };
    first.ack(&got);
    first.source.release(scope);
    let told = first.flush().await.unwrap_err().to_string();
    assert!(told.contains("a partition was taken away"), "asked before: {asked_before}: {told}");
    first.until(|event| *event == Event::Unsettled { scope, messages: 5 }).await;
    kafka.start_again().unwrap();
    let again = first.receive(5).await;
    first.flush().await.expect("it was told");
    first.ack(&again);
    first.flush().await.unwrap();
    first.close().await.unwrap();
    assert!(left(&brokers, &topic, &group).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_restart_of_the_broker_is_waited_out() {
    tokio::join!(waits_out_a_restart(GroupProtocol::Classic), waits_out_a_restart(GroupProtocol::Consumer));
}

async fn waits_out_a_restart(protocol: GroupProtocol) {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 2).await;
    let group = unique("g");
    let publisher = publisher(&brokers);
    produce(&publisher, &topic, 0..10).await;
    let builder = KafkaSource::builder(&brokers).group(&group).topic(&topic).group_protocol(protocol);
    let mut member = Member::new(builder);
    let mut all = member.receive(10).await;
    kafka.kill();
    member.until(|event| *event == Event::Disconnected).await;
    kafka.start_again().unwrap();
    member.until(|event| *event == Event::Connected).await;
    produce(&publisher, &topic, 10..20).await;
    while all.iter().map(|d| number(&d.message)).collect::<BTreeSet<_>>().len() < 20 {
        all.extend(member.receive(1).await);
    }
    member.ack(&all);
    timeout(LIMIT, poll_fn(|cx| member.source.poll_flush(cx))).await.unwrap().unwrap();
    member.close().await.unwrap();
    assert!(left(&brokers, &topic, &group).await.is_empty());
}
