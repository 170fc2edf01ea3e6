//! What is delivered, in which order, and how much at once.

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use consumer_core::{Event, Message, Outgoing, Source};
use tokio::{sync::Notify, time::timeout};

use super::super::broker::{BrokerUnderTest, Case, distinct, numbers, sorted};
use crate::drive::{Driven, drive_until};

/// A source without messages reports that it is connected, so that idle time can be told from connecting.
pub async fn it_says_when_it_is_connected<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "it_says_when_it_is_connected", 1).await;
    let mut member = case.member(&case.group().await).await;
    let connected = member.wait_for(|events| events.contains(&Event::Connected)).await;
    assert!(connected, "it_says_when_it_is_connected: got {:?}", member.events);
    member.close().await;
}

/// Nothing is lost, also with several partitions.
pub async fn every_message_is_delivered<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "every_message_is_delivered", 3).await;
    let group = case.group().await;
    for n in 0..100_u32 {
        let message = Message::builder().payload(n.to_string()).key((n % 10).to_string()).build();
        case.publish(message).await;
    }
    let mut member = case.member(&group).await.acking();
    let all = drive_until(&mut [&mut member], |members| distinct(members).len() >= 100).await;
    assert!(all, "every_message_is_delivered: {} of 100", distinct(&[&mut member]).len());
    member.close().await;
}

/// Publishing and consuming at the same time loses nothing.
pub async fn messages_come_while_others_are_published<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "messages_come_while_others_are_published", 2).await;
    let mut member = case.member(&case.group().await).await.acking();
    let publishing = async {
        for n in 0..200_u32 {
            case.publish(Message::builder().payload(n.to_string()).key((n % 7).to_string()).build()).await;
            tokio::task::yield_now().await;
        }
    };
    let mut members = [&mut member];
    let consuming = drive_until(&mut members, |members| distinct(members).len() >= 200);
    let ((), all) = tokio::join!(publishing, consuming);
    assert!(all, "messages_come_while_others_are_published: {} of 200", distinct(&[&mut member]).len());
    member.close().await;
}

/// A message that is published while a source waits wakes it.
pub async fn an_idle_source_is_woken<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_idle_source_is_woken", 1).await;
    let mut member = case.member(&case.group().await).await;
    member.wait_for(|events| events.contains(&Event::Connected)).await;
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    for n in 0..5 {
        // Polled when it was woken and never else: once until it waits, then for the message.
        let idle = until_pending(&mut member, &waker);
        assert_eq!(idle, 0, "an_idle_source_is_woken: nothing is there yet");
        case.publish_numbers(n..n + 1).await;
        let delivered = timeout(subject.patience(), async {
            loop {
                woken.0.notified().await;
                if until_pending(&mut member, &waker) > 0 {
                    break;
                }
            }
        });
        assert!(delivered.await.is_ok(), "an_idle_source_is_woken: message {n} did not wake it");
        let taken = member.take_buffered();
        assert_eq!(numbers(&taken), [n], "an_idle_source_is_woken");
        member.ack(&taken);
    }
    member.close().await;
}

/// A waker that keeps having been woken for one who waits for it.
#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Polls until the source waits for its waker; the answer is how many deliveries came.
fn until_pending<S: Source>(member: &mut Driven<S>, waker: &Waker) -> usize {
    let before = member.payloads.len();
    loop {
        match member.poll(&mut Context::from_waker(waker)) {
            Poll::Ready(Ok(Event::End)) => panic!("the source has ended"),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => panic!("the source failed: {error:?}"),
            Poll::Pending => return member.payloads.len() - before,
        }
    }
}

/// A handler may publish, to another topic and to its own: what it holds does not keep the confirm back, though nobody
/// polls the source meanwhile.
pub async fn messages_may_be_published_while_others_are_held<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "messages_may_be_published_while_others_are_held", 1).await;
    let other = Case::new(subject, case.rule, 1).await;
    let (group, other_group) = (case.group().await, other.group().await);
    case.publish_numbers(0..5).await;
    // It holds as much as it ever may.
    let mut member = case.member(&group).await.demand(5);
    let held = member.take(5, case.rule).await;
    for delivery in &held {
        let (back, on) = (case.topic.as_str(), other.topic.as_str());
        case.send(Outgoing::copy(on, delivery.message.clone())).await;
        case.send(Outgoing::copy(back, Message::new("100"))).await;
    }
    member.ack(&held);
    let back = member.take(5, "messages_may_be_published_while_others_are_held: its own topic").await;
    assert_eq!(numbers(&back), [100; 5], "messages_may_be_published_while_others_are_held: its own topic");
    member.ack(&back);
    member.close().await;
    let mut member = other.member(&other_group).await;
    let on = member.take(5, "messages_may_be_published_while_others_are_held: the other topic").await;
    assert_eq!(numbers(&on), (0..5).collect::<Vec<_>>(), "messages_may_be_published_while_others_are_held");
    member.ack(&on);
    member.close().await;
}

/// While a message is held, others come and go, and it does not come again: neither meanwhile nor once it is acked.
pub async fn a_held_message_stays_held<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_held_message_stays_held", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..1).await;
    let mut member = case.member(&group).await;
    let held = member.take(1, case.rule).await;
    for n in 1..60 {
        case.publish_numbers(n..n + 1).await;
        let other = member.take(1, case.rule).await;
        assert_eq!(
            numbers(&other),
            [n],
            "a_held_message_stays_held: the held message or another one came instead"
        );
        member.ack(&other);
        if n % 20 == 0 {
            member.flush().await;
        }
    }
    member.ack(&held);
    member.flush().await;
    member.close().await;
    case.nothing_is_left(&group, 60).await;
}

/// The room bounds what a source hands over; the rest comes when there is room again.
pub async fn nothing_beyond_the_room_is_pushed<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "nothing_beyond_the_room_is_pushed", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..12).await;
    // `Driven` itself panics when there is more than the room.
    let mut member = case.member(&group).await.demand(3);
    let mut got = Vec::new();
    for n in 0..4 {
        let taken = member.take(3, case.rule).await;
        // Full: though another message is on its way to it, nothing comes.
        member.set_room(0);
        tokio::select! {
            _ = member.next() => panic!("nothing_beyond_the_room_is_pushed: without room nothing comes"),
            () = case.publish_numbers(12 + n..13 + n) => {}
        }
        member.ack(&taken);
        got.extend(taken);
        member.set_room(3);
    }
    for _ in 0..4 {
        let taken = member.take(1, "nothing_beyond_the_room_is_pushed: the rest comes").await;
        member.ack(&taken);
        got.extend(taken);
    }
    assert_eq!(sorted(&got), (0..16).collect::<Vec<_>>(), "nothing_beyond_the_room_is_pushed");
    member.close().await;
}

/// A full consumer gets no messages and still learns what happens to it.
pub async fn without_room_control_events_still_come<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "without_room_control_events_still_come", 2).await;
    let group = case.group().await;
    case.publish_keys(0..10).await;
    let mut member = case.member(&group).await;
    member.set_room(0);
    let connected = member.wait_for(|events| events.contains(&Event::Connected)).await;
    assert!(connected, "without_room_control_events_still_come: connected, got {:?}", member.events);
    member.set_room(10);
    let taken = member.take(10, case.rule).await;
    member.ack(&taken);
    member.close().await;
}

/// Messages of one key come in the order they were published in; on a queue, all of them do.
pub async fn order_is_kept_within_a_key<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "order_is_kept_within_a_key", 3).await;
    let group = case.group().await;
    for n in 0..90_u32 {
        let key = ["a", "b", "c"][n as usize % 3];
        case.publish(Message::builder().payload(n.to_string()).key(key).build()).await;
    }
    let mut member = case.member(&group).await;
    let taken = member.take(90, case.rule).await;
    for key in ["a", "b", "c"] {
        let of_key = taken.iter().filter(|d| d.message.key().is_some_and(|k| k == key.as_bytes()));
        let got = numbers(of_key);
        assert_eq!(got.len(), 30, "order_is_kept_within_a_key: key {key} is complete");
        assert!(got.is_sorted(), "order_is_kept_within_a_key: key {key} came as {got:?}");
    }
    member.ack(&taken);
    member.close().await;
}

/// What comes again after a close comes in its order, before what follows it. The source holds as much as it may and
/// acks nothing, so that nothing is on its way to it: what a queue has sent and nobody has seen may come back late.
pub async fn order_is_kept_when_messages_come_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "order_is_kept_when_messages_come_again", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..20).await;
    let mut member = case.member(&group).await.demand(10);
    member.take(10, case.rule).await;
    member.close().await;
    let mut next = case.member(&group).await;
    let again = next.take(20, case.rule).await;
    assert_eq!(numbers(&again), (0..20).collect::<Vec<_>>(), "order_is_kept_when_messages_come_again");
    next.ack(&again);
    next.close().await;
}
