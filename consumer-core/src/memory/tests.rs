use std::{
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    Delivery, Event, Message, Outgoing, Publisher, Settlement, Source,
    dedup::{ClaimReply, ClaimRequest, DedupStore, Owner, Resolution, Resolved, StoreKey, protocol::State},
};

const LEASE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

fn request(key: &'static str, seq: u64) -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("test".into(), key.into()),
        owner: Owner { process: 1, seq },
        fingerprint: None,
        lease: LEASE,
        grace: LEASE,
        attempt: 1,
        redrive: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn records_expire_on_the_paused_clock_and_are_swept() {
    let store = MemoryStore::new();
    for n in 0..100_000_u32 {
        let key = StoreKey::new("test".into(), n.to_string().into());
        let claimed = store.claim(ClaimRequest { key, ..request("", 1) }).await.unwrap();
        assert!(matches!(claimed, ClaimReply::Claimed(_)), "{claimed:?}");
        if n % 100 == 0 {
            tokio::time::advance(LEASE / 10).await;
        }
    }
    // 20 leases' worth of advances are 2,000 keys; twice that and the smallest size of a shard may stay.
    assert!(store.len() < 20_000, "{} records are kept", store.len());
    assert_eq!(store.stats().claims, 100_000);
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_resolutions_and_refuses_the_rest() {
    let store = MemoryStore::new();
    let Ok(ClaimReply::Claimed(claim)) = store.claim(request("k", 1)).await else { panic!("claimed") };
    store.set_down(true);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(store.poll_available(&mut cx).is_pending());
    assert!(store.claim(request("k", 2)).await.is_err());
    let kept = tokio::spawn(store.resolve(claim, Resolution::Completed, DAY));
    let flushed = tokio::spawn(store.flush());
    tokio::task::yield_now().await;
    assert!(!kept.is_finished() && !flushed.is_finished());
    store.set_down(false);
    assert_eq!(kept.await.unwrap().unwrap(), Resolved::Applied);
    flushed.await.unwrap().unwrap();
    assert!(store.poll_available(&mut cx).is_ready());
    assert_eq!(store.claim(request("k", 3)).await.unwrap(), ClaimReply::Completed);
}

#[tokio::test]
async fn fm03_a_claim_whose_reply_was_lost_is_recognised() {
    let store = MemoryStore::new();
    store.lose_replies(1);
    assert!(store.claim(request("k", 1)).await.is_err());
    assert!(matches!(store.state(&request("k", 1).key), State::Claimed(_)));
    assert!(
        matches!(store.claim(request("k", 1)).await.unwrap(), ClaimReply::Claimed(c) if c.owner.seq == 1)
    );
}

async fn broker(partitions: usize, messages: usize) -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("t", partitions);
    publish(&broker, 0..messages).await;
    broker
}

async fn publish(broker: &MemoryBroker, numbers: std::ops::Range<usize>) {
    for n in numbers {
        broker.publisher().publish(Outgoing::new("t", Message::new(n.to_string()))).await.unwrap();
    }
}

/// The next event that is not a delivery, if the source has one now; deliveries go to `out`.
async fn events(source: &mut MemorySource, out: &mut Vec<Delivery>) -> Vec<Event> {
    let mut events = Vec::new();
    poll_fn(|cx| {
        while let Poll::Ready(event) = source.poll_event(cx, 100, out) {
            events.push(event.unwrap());
            if events.last() == Some(&Event::End) {
                break;
            }
        }
        Poll::Ready(())
    })
    .await;
    events.retain(|event| *event != Event::Delivered);
    events
}

fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(delivery.message.payload()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn fm12_nothing_is_committed_past_an_unsettled_delivery() {
    let broker = broker(1, 3).await;
    let mut source = broker.source("g", ["t"]);
    let mut out = Vec::new();
    assert_eq!(events(&mut source, &mut out).await, [Event::Connected]);
    source.settle(out[2].tag, Settlement::Ack);
    source.settle(out[1].tag, Settlement::Ack);
    assert_eq!(broker.committed("g", "t", 0), None);
    drop(source);
    let mut source = broker.source("g", ["t"]);
    out.clear();
    events(&mut source, &mut out).await;
    assert_eq!(out.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2"]);
    source.settle(out[0].tag, Settlement::Ack);
    assert_eq!(broker.committed("g", "t", 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn fm13_a_gap_in_the_log_holds_nothing_up() {
    let broker = broker(1, 5).await;
    broker.remove_record("t", 0, 0);
    broker.remove_record("t", 0, 2);
    broker.remove_record("t", 0, 4);
    let mut source = broker.source("g", ["t"]).finite();
    let mut out = Vec::new();
    events(&mut source, &mut out).await;
    assert_eq!(out.iter().map(text).collect::<Vec<_>>(), ["1", "3"]);
    out.iter().for_each(|delivery| source.settle(delivery.tag, Settlement::Ack));
    assert_eq!(broker.committed("g", "t", 0), Some(4));
    assert_eq!(events(&mut source, &mut out).await, [Event::End]);
}

#[tokio::test(start_paused = true)]
async fn fm14_a_late_settlement_of_an_old_assignment_changes_nothing() {
    let broker = broker(1, 2).await;
    let mut source = broker.source("g", ["t"]);
    let mut old = Vec::new();
    events(&mut source, &mut old).await;
    source.crash_handle().lose_connection();
    let mut new = Vec::new();
    let seen = events(&mut source, &mut new).await;
    let closing = Event::Closing { scope: old[0].tag.scope, within: Duration::ZERO };
    assert_eq!(seen, [Event::Disconnected, closing, Event::Connected]);
    assert_ne!(new[0].tag.scope, old[0].tag.scope);
    source.settle(old[0].tag, Settlement::Ack);
    source.settle(old[1].tag, Settlement::Ack);
    assert_eq!(broker.committed("g", "t", 0), None);
    source.settle(new[0].tag, Settlement::Ack);
    assert_eq!(broker.committed("g", "t", 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_partition_is_handed_over_when_released_or_in_the_end_taken() {
    let broker = broker(2, 4).await;
    let (mut first, mut second) = (broker.source("g", ["t"]), broker.source("g", ["t"]));
    let (mut out, mut got) = (Vec::new(), Vec::new());
    events(&mut first, &mut out).await;
    assert_eq!(out.len(), 4);
    assert_eq!(events(&mut second, &mut got).await, [Event::Connected]);
    let seen = events(&mut first, &mut out).await;
    let [Event::Closing { scope, within }] = seen[..] else { panic!("{seen:?}") };
    assert_eq!(within, Duration::from_secs(10));
    // What is settled before the release counts.
    let moving = out.iter().find(|delivery| delivery.tag.scope == scope).unwrap();
    first.settle(moving.tag, Settlement::Ack);
    events(&mut second, &mut got).await;
    assert!(got.is_empty(), "the partition is still with the first member");
    first.release(scope);
    events(&mut second, &mut got).await;
    assert_eq!(got.len(), 1);

    let mut third = broker.source("g", ["t"]);
    drop(first);
    let mut taken = Vec::new();
    events(&mut second, &mut got).await;
    assert_eq!(events(&mut third, &mut taken).await, [Event::Connected]);
    assert!(taken.is_empty());
    tokio::time::advance(Duration::from_secs(20)).await;
    events(&mut third, &mut taken).await;
    assert!(!taken.is_empty(), "a member that never releases loses the partition in the end");
}

#[tokio::test(start_paused = true)]
async fn a_nack_and_a_lost_settlement_deliver_again() {
    let broker = broker(1, 1).await;
    let mut source = broker.source("g", ["t"]);
    let mut out = Vec::new();
    events(&mut source, &mut out).await;
    source.settle(out[0].tag, Settlement::Nack);
    events(&mut source, &mut out).await;
    assert_eq!((out.len(), broker.committed("g", "t", 0)), (2, None));
    assert_ne!(out[0].tag, out[1].tag);
    broker.lose_next_settlements(1);
    source.settle(out[1].tag, Settlement::Ack);
    assert_eq!(
        events(&mut source, &mut out).await,
        [Event::Unsettled { scope: out[1].tag.scope, messages: 1 }]
    );
    assert_eq!(out.len(), 3);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(source.poll_flush(cx), Poll::Ready(Err(_))));
    source.settle(out[2].tag, Settlement::Reject);
    assert!(matches!(source.poll_flush(cx), Poll::Ready(Ok(()))), "it was told once");
    assert_eq!(broker.committed("g", "t", 0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_injected_duplicate_never_moves_the_commit_back() {
    let broker = broker(1, 3).await;
    broker.inject_duplicate_delivery(1);
    let mut source = broker.source("g", ["t"]);
    let mut out = Vec::new();
    events(&mut source, &mut out).await;
    assert_eq!(out.iter().map(text).collect::<Vec<_>>(), ["0", "0", "1", "2"]);
    source.settle(out[0].tag, Settlement::Ack);
    source.settle(out[2].tag, Settlement::Ack);
    source.settle(out[3].tag, Settlement::Ack);
    source.settle(out[1].tag, Settlement::Nack);
    assert_eq!(broker.committed("g", "t", 0), Some(3));
    assert!(events(&mut source, &mut out).await.is_empty());
    assert_eq!(out.len(), 4, "a duplicate of what is done is not delivered again");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_comes_when_it_is_due() {
    let broker = broker(1, 0).await;
    let mut source = broker.source("g", ["t"]).finite();
    let outgoing = Outgoing::new("t", Message::new("later")).not_before(SystemTime::now() + DAY);
    broker.publisher().publish(outgoing).await.unwrap();
    let mut out = Vec::new();
    assert_eq!(events(&mut source, &mut out).await, [Event::Connected]);
    let before = tokio::time::Instant::now();
    while out.is_empty() {
        poll_fn(|cx| source.poll_event(cx, 1, &mut out).map(|event| event.unwrap())).await;
    }
    let late = before.elapsed().abs_diff(DAY);
    assert!(late < Duration::from_secs(60), "off by {late:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_disconnects_and_comes_back() {
    let broker = broker(1, 1).await;
    let mut source = broker.source("g", ["t"]);
    let mut out = Vec::new();
    events(&mut source, &mut out).await;
    broker.set_down(true);
    let refused = broker.publisher().publish(Outgoing::new("t", Message::new("x"))).await;
    assert!(refused.is_err_and(|error| error.is_transient()));
    let closing = Event::Closing { scope: out[0].tag.scope, within: Duration::ZERO };
    assert_eq!(events(&mut source, &mut out).await, [Event::Disconnected, closing]);
    broker.set_down(false);
    assert_eq!(events(&mut source, &mut out).await, [Event::Connected]);
    assert_eq!(out.len(), 2);
}

#[tokio::test]
async fn missing_topics_and_refused_messages_are_clear_errors() {
    let broker = broker(1, 0).await;
    let publisher = broker.publisher();
    let lost = publisher.publish(Outgoing::new("nowhere", Message::new("x"))).await.unwrap_err();
    assert!(lost.is_unroutable() && !lost.is_transient());
    broker.set_max_message_bytes("t", 10);
    let large = publisher.publish(Outgoing::copy("t", Message::new("0123456789a"))).await.unwrap_err();
    assert!(large.is_too_large());
    broker.fail_next_publishes(1, PublishFault::LostConfirm);
    assert!(publisher.publish(Outgoing::copy("t", Message::new("x"))).await.is_err());
    assert_eq!(broker.records("t").len(), 1);
    let mut source = broker.source("g", ["t", "nowhere"]);
    let error = poll_fn(|cx| source.poll_event(cx, 1, &mut Vec::new())).await.unwrap_err();
    assert!(error.to_string().contains("topic nowhere"), "{error}");
}

#[tokio::test]
async fn a_poll_that_waits_is_woken_by_a_publish() {
    let broker = broker(1, 0).await;
    let mut source = broker.source("g", ["t"]);
    let waiting = tokio::spawn(async move {
        let mut out = Vec::new();
        while out.is_empty() {
            poll_fn(|cx| source.poll_event(cx, 1, &mut out)).await.unwrap();
        }
        out
    });
    tokio::task::yield_now().await;
    publish(&broker, 0..1).await;
    let out = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it is woken").unwrap();
    assert_eq!(text(&out[0]), "0");
}
