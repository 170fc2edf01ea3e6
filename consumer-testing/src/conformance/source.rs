//! What every source has to do.

use consumer_core::{Event, Message, Settlement, Source};

use super::broker::{BrokerUnderTest, Case, numbers};
use crate::{
    drive::{Driven, drive_until},
    unique,
};

/// Runs every rule that the broker's [capabilities](super::Capabilities) call for.
///
/// # Panics
/// When one is broken, with its name.
pub async fn run_all<T: BrokerUnderTest>(subject: &T) {
    macro_rules! rules {
        ($($rule:ident)*) => {
            $(
                tracing::debug!(rule = stringify!($rule), "source conformance");
                $rule(subject).await;
            )*
        };
    }
    rules! {
        it_says_when_it_is_connected
        every_message_is_delivered
        what_was_acked_does_not_come_again
        what_was_not_acked_comes_again
        a_rejected_message_does_not_come_again
        a_nacked_message_comes_again
        a_crash_brings_back_what_was_not_acked
        acks_out_of_order_lose_nothing
        nothing_beyond_the_room_is_pushed
        without_room_control_events_still_come
        stale_tags_are_ignored
        settling_twice_changes_nothing
        a_held_message_stays_held
        messages_come_while_others_are_published
        order_is_kept_within_a_key
        every_group_gets_every_message
        members_share_and_hand_over
        closing_at_once_loses_nothing
        a_group_goes_on_where_it_stopped
        an_idle_source_is_woken
    }
}

/// A source without messages reports that it is connected, so that idle time can be told from connecting.
pub async fn it_says_when_it_is_connected<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "it_says_when_it_is_connected", 1).await;
    let mut member = case.member(&unique("group")).await;
    let connected = member.wait_for(|events| events.contains(&Event::Connected)).await;
    assert!(connected, "it_says_when_it_is_connected: got {:?}", member.events);
    member.close().await;
}

/// Nothing is lost, also with several partitions.
pub async fn every_message_is_delivered<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "every_message_is_delivered", 3).await;
    for n in 0..100_u32 {
        let message = Message::builder().payload(n.to_string()).key((n % 10).to_string()).build();
        case.publish(message).await;
    }
    let mut member = case.member(&unique("group")).await.acking();
    let all = drive_until(&mut [&mut member], |members| distinct(members).len() >= 100).await;
    assert!(all, "every_message_is_delivered: {} of 100", distinct(&[&mut member]).len());
    member.close().await;
}

/// An ack that was flushed holds.
pub async fn what_was_acked_does_not_come_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_was_acked_does_not_come_again", 1).await;
    let group = unique("group");
    case.publish_numbers(0..20).await;
    let mut member = case.member(&group).await;
    let taken = member.take(20, case.rule).await;
    member.ack(&taken);
    member.flush().await;
    member.close().await;
    // The marker shows that there is nothing before it.
    case.publish_numbers(20..21).await;
    let mut next = case.member(&group).await;
    let taken = next.take(1, case.rule).await;
    let first = numbers([&taken[0].message.payload()[..]]);
    assert_eq!(first, [20], "what_was_acked_does_not_come_again");
    next.close().await;
}

/// Closing does not ack what is still held.
pub async fn what_was_not_acked_comes_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_was_not_acked_comes_again", 1).await;
    let group = unique("group");
    case.publish_numbers(0..4).await;
    let mut member = case.member(&group).await;
    let taken = member.take(4, case.rule).await;
    member.ack(&taken[..2]);
    member.close().await;
    let mut next = case.member(&group).await;
    let again = next.take(2, case.rule).await;
    let mut again = numbers(again.iter().map(|delivery| &delivery.message.payload()[..]));
    again.sort_unstable();
    assert_eq!(again, [2, 3], "what_was_not_acked_comes_again");
    next.close().await;
}

/// A rejected message is done with.
pub async fn a_rejected_message_does_not_come_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_rejected_message_does_not_come_again", 1).await;
    let group = unique("group");
    case.publish_numbers(0..1).await;
    let mut member = case.member(&group).await;
    let taken = member.take(1, case.rule).await;
    member.settle(taken[0].tag, Settlement::Reject);
    member.flush().await;
    member.close().await;
    case.publish_numbers(1..2).await;
    let mut next = case.member(&group).await;
    let taken = next.take(1, case.rule).await;
    assert_eq!(&taken[0].message.payload()[..], b"1", "a_rejected_message_does_not_come_again");
    next.close().await;
}

/// A nacked message comes again, without anything being closed, and is not lost by what is acked behind it.
pub async fn a_nacked_message_comes_again<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().nack {
        return;
    }
    let case = Case::new(subject, "a_nacked_message_comes_again", 1).await;
    let group = unique("group");
    case.publish_numbers(0..3).await;
    let mut member = case.member(&group).await;
    let taken = member.take(3, case.rule).await;
    member.settle(taken[0].tag, Settlement::Nack);
    member.ack(&taken[1..]);
    let again = member.take(1, case.rule).await;
    assert_eq!(again[0].message.payload(), taken[0].message.payload(), "a_nacked_message_comes_again");
    member.ack(&again);
    member.flush().await;
    member.close().await;
    case.publish_numbers(3..4).await;
    let mut next = case.member(&group).await;
    let taken = next.take(1, case.rule).await;
    assert_eq!(
        &taken[0].message.payload()[..],
        b"3",
        "a_nacked_message_comes_again: it was acked in the end"
    );
    next.close().await;
}

/// A crash loses nothing (failure mode 02, as far as the source goes).
pub async fn a_crash_brings_back_what_was_not_acked<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().crash {
        return;
    }
    let case = Case::new(subject, "a_crash_brings_back_what_was_not_acked", 1).await;
    let group = unique("group");
    case.publish_numbers(0..5).await;
    let mut member = case.member(&group).await;
    let taken = member.take(5, case.rule).await;
    member.ack(&taken[..1]);
    member.flush().await;
    drop(member);
    let mut next = case.member(&group).await;
    let again = next.take(4, case.rule).await;
    let mut again = numbers(again.iter().map(|delivery| &delivery.message.payload()[..]));
    again.sort_unstable();
    assert_eq!(again, [1, 2, 3, 4], "a_crash_brings_back_what_was_not_acked");
    next.close().await;
}

/// Acks in another order commit nothing that is not acked (failure mode 12).
pub async fn acks_out_of_order_lose_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "acks_out_of_order_lose_nothing", 1).await;
    let group = unique("group");
    case.publish_numbers(0..6).await;
    let mut member = case.member(&group).await;
    let taken = member.take(6, case.rule).await;
    member.ack(taken.iter().rev().take(4));
    member.ack(&taken[..1]);
    member.flush().await;
    member.close().await;
    let mut next = case.member(&group).await;
    let again = next.take(1, case.rule).await;
    assert_eq!(&again[0].message.payload()[..], b"1", "acks_out_of_order_lose_nothing: 1 was never acked");
    next.close().await;
}

/// The room bounds what a source hands over; the rest comes when there is room again.
pub async fn nothing_beyond_the_room_is_pushed<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "nothing_beyond_the_room_is_pushed", 1).await;
    case.publish_numbers(0..10).await;
    let mut member = case.member(&unique("group")).await;
    // `Driven` itself panics when there is more than the room.
    member.set_room(3);
    let taken = member.take(10, case.rule).await;
    assert_eq!(
        numbers(taken.iter().map(|delivery| &delivery.message.payload()[..])),
        (0..10).collect::<Vec<_>>()
    );
    member.ack(&taken);
    member.close().await;
}

/// A full consumer gets no messages and still learns what happens to it.
pub async fn without_room_control_events_still_come<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "without_room_control_events_still_come", 2).await;
    let group = unique("group");
    for n in 0..10_u32 {
        case.publish(Message::builder().payload(n.to_string()).key(n.to_string()).build()).await;
    }
    let mut first = case.member(&group).await;
    first.set_room(0);
    let connected = first.wait_for(|events| events.contains(&Event::Connected)).await;
    assert!(connected, "without_room_control_events_still_come: connected, got {:?}", first.events);
    if subject.capabilities().rebalance {
        // Some sources know of their partitions only later.
        first.set_room(10);
        first.take(1, case.rule).await;
        first.set_room(0);
        let mut second = case.member(&group).await;
        let closing = drive_until(&mut [&mut first, &mut second], |members| {
            members[0].events.iter().any(|event| matches!(event, Event::Closing { .. }))
        })
        .await;
        assert!(closing, "without_room_control_events_still_come: a full member learns of a revoke");
        second.close().await;
    }
    first.close().await;
}

/// A tag that names nothing settles nothing.
pub async fn stale_tags_are_ignored<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "stale_tags_are_ignored", 1).await;
    let group = unique("group");
    case.publish_numbers(0..2).await;
    let mut member = case.member(&group).await;
    let taken = member.take(2, case.rule).await;
    for mut tag in [taken[0].tag, taken[1].tag] {
        tag.scope = tag.scope.wrapping_add(1_000_000);
        member.settle(tag, Settlement::Ack);
    }
    member.source().release(taken[0].tag.scope.wrapping_add(1_000_000));
    member.flush().await;
    member.close().await;

    let mut next = case.member(&group).await;
    // The scope of the closed source has ended: a late settlement of it (failure mode 14) must not be mistaken for
    // one of the new assignment.
    let again = next.take(2, case.rule).await;
    if again[0].tag != taken[0].tag {
        next.ack(&taken);
    }
    next.flush().await;
    next.close().await;
    let mut last = case.member(&group).await;
    let last_taken = last.take(2, "stale_tags_are_ignored: a stale tag has acked").await;
    last.ack(&last_taken);
    last.close().await;
}

/// Only the first settlement of a delivery counts, and a second one does no harm.
pub async fn settling_twice_changes_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "settling_twice_changes_nothing", 1).await;
    let group = unique("group");
    case.publish_numbers(0..2).await;
    let mut member = case.member(&group).await;
    let taken = member.take(2, case.rule).await;
    member.ack(&taken);
    member.ack(&taken);
    member.settle(taken[0].tag, Settlement::Nack);
    member.flush().await;
    case.publish_numbers(2..3).await;
    let next = member.take(1, case.rule).await;
    assert_eq!(&next[0].message.payload()[..], b"2", "settling_twice_changes_nothing");
    member.close().await;
}

/// While a message is held, others come and go, and it does not come again.
pub async fn a_held_message_stays_held<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_held_message_stays_held", 1).await;
    let group = unique("group");
    case.publish_numbers(0..1).await;
    let mut member = case.member(&group).await;
    let held = member.take(1, case.rule).await;
    for n in 1..30 {
        case.publish_numbers(n..n + 1).await;
        let other = member.take(1, case.rule).await;
        let got = numbers([&other[0].message.payload()[..]]);
        assert_eq!(got, [n], "a_held_message_stays_held: the held message or another one came instead");
        member.ack(&other);
    }
    member.ack(&held);
    member.flush().await;
    member.close().await;
    case.publish_numbers(30..31).await;
    let mut next = case.member(&group).await;
    let taken = next.take(1, case.rule).await;
    assert_eq!(&taken[0].message.payload()[..], b"30", "a_held_message_stays_held: all of them are acked");
    next.close().await;
}

/// Publishing and consuming at the same time loses nothing.
pub async fn messages_come_while_others_are_published<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "messages_come_while_others_are_published", 2).await;
    let mut member = case.member(&unique("group")).await.acking();
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

/// Messages of one key come in the order they were published in.
pub async fn order_is_kept_within_a_key<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().order {
        return;
    }
    let case = Case::new(subject, "order_is_kept_within_a_key", 3).await;
    for n in 0..90_u32 {
        let key = ["a", "b", "c"][n as usize % 3];
        case.publish(Message::builder().payload(n.to_string()).key(key).build()).await;
    }
    let mut member = case.member(&unique("group")).await;
    let taken = member.take(90, case.rule).await;
    for key in ["a", "b", "c"] {
        let of_key = taken.iter().filter(|d| d.message.key().is_some_and(|k| k == key.as_bytes()));
        let got = numbers(of_key.map(|delivery| &delivery.message.payload()[..]));
        assert_eq!(got.len(), 30, "order_is_kept_within_a_key: key {key} is complete");
        assert!(got.is_sorted(), "order_is_kept_within_a_key: key {key} came as {got:?}");
    }
    member.ack(&taken);
    member.close().await;
}

/// Groups do not take messages from each other.
pub async fn every_group_gets_every_message<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().groups {
        return;
    }
    let case = Case::new(subject, "every_group_gets_every_message", 2).await;
    case.publish_numbers(0..20).await;
    for _ in 0..2 {
        let mut member = case.member(&unique("group")).await;
        let taken = member.take(20, case.rule).await;
        let mut got = numbers(taken.iter().map(|delivery| &delivery.message.payload()[..]));
        got.sort_unstable();
        assert_eq!(got, (0..20).collect::<Vec<_>>(), "every_group_gets_every_message");
        member.ack(&taken);
        member.close().await;
    }
}

/// A member that joins gets its share, and one that leaves gives its share to the others: nothing is lost, and what
/// was acked before the handover does not come again.
pub async fn members_share_and_hand_over<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().rebalance {
        return;
    }
    let case = Case::new(subject, "members_share_and_hand_over", 4).await;
    let group = unique("group");
    let publish = async |range: std::ops::Range<u32>| {
        for n in range {
            case.publish(Message::builder().payload(n.to_string()).key(n.to_string()).build()).await;
        }
    };
    let mut first = case.member(&group).await.acking();
    let mut second = case.member(&group).await.acking();
    publish(0..40).await;
    let all = drive_until(&mut [&mut first], |members| distinct(members).len() >= 40).await;
    assert!(all, "members_share_and_hand_over: one member alone gets everything");
    let shared = drive_until(&mut [&mut first, &mut second], |members| {
        let closing = members[0].events.iter().any(|event| matches!(event, Event::Closing { .. }));
        closing && members[1].events.contains(&Event::Connected)
    })
    .await;
    assert!(shared, "members_share_and_hand_over: the first member is asked for a part");
    let mut next = 40;
    for _ in 0..20 {
        publish(next..next + 40).await;
        next += 40;
        let got =
            drive_until(&mut [&mut first, &mut second], |members| distinct(members).len() >= next as usize)
                .await;
        assert!(got, "members_share_and_hand_over: both members together get everything");
        if !second.payloads.is_empty() {
            break;
        }
    }
    assert!(!second.payloads.is_empty(), "members_share_and_hand_over: the second member gets a share");
    let delivered = first.payloads.len() + second.payloads.len();
    assert_eq!(delivered, next as usize, "members_share_and_hand_over: what was acked came again");
    first.close().await;
    publish(next..next + 40).await;
    next += 40;
    let rest = drive_until(&mut [&mut second], |members| {
        let all: Vec<_> = first.payloads.iter().chain(&members[0].payloads).collect();
        all.iter().collect::<std::collections::BTreeSet<_>>().len() >= next as usize
    })
    .await;
    assert!(rest, "members_share_and_hand_over: the one that stays gets everything");
    second.close().await;
}

/// Two members that close at the same time in the middle of their messages leave the rest to the next.
pub async fn closing_at_once_loses_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "closing_at_once_loses_nothing", 2).await;
    let group = unique("group");
    for n in 0..60_u32 {
        case.publish(Message::builder().payload(n.to_string()).key(n.to_string()).build()).await;
    }
    let (mut first, mut second) = (case.member(&group).await, case.member(&group).await);
    first.set_room(10);
    second.set_room(10);
    let taken = first.take(10, case.rule).await;
    first.ack(&taken);
    let mut acked = numbers(taken.iter().map(|delivery| &delivery.message.payload()[..]));
    tokio::join!(first.close(), second.close());
    let mut rest = case.member(&group).await.acking();
    let expected = 60 - 10;
    let all = drive_until(&mut [&mut rest], |members| distinct(members).len() >= expected).await;
    acked.extend(distinct(&[&mut rest]));
    acked.sort_unstable();
    acked.dedup();
    assert!(all && acked.len() == 60, "closing_at_once_loses_nothing: {} of 60", acked.len());
    rest.close().await;
}

/// A group that comes back goes on behind what it had acked.
pub async fn a_group_goes_on_where_it_stopped<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_group_goes_on_where_it_stopped", 1).await;
    let group = unique("group");
    for round in 0..3 {
        case.publish_numbers(round * 10..round * 10 + 10).await;
        let mut member = case.member(&group).await;
        let taken = member.take(10, case.rule).await;
        let got = numbers(taken.iter().map(|delivery| &delivery.message.payload()[..]));
        let expected: Vec<_> = (round * 10..round * 10 + 10).collect();
        assert_eq!(got, expected, "a_group_goes_on_where_it_stopped: round {round}");
        member.ack(&taken);
        member.close().await;
    }
}

/// A message that is published while a source waits wakes it.
pub async fn an_idle_source_is_woken<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_idle_source_is_woken", 1).await;
    let mut member = case.member(&unique("group")).await;
    member.wait_for(|events| events.contains(&Event::Connected)).await;
    for n in 0..5 {
        let (taken, ()) = tokio::join!(member.take(1, case.rule), async {
            tokio::task::yield_now().await;
            case.publish_numbers(n..n + 1).await;
        });
        assert_eq!(numbers([&taken[0].message.payload()[..]]), [n], "an_idle_source_is_woken");
        member.ack(&taken);
    }
    member.close().await;
}

fn distinct<S>(members: &[&mut Driven<S>]) -> Vec<u32> {
    let mut all = numbers(members.iter().flat_map(|member| member.payloads.iter().map(|p| &p[..])));
    all.sort_unstable();
    all.dedup();
    all
}
