//! Connections that are lost, and sources that are.

use std::{future::poll_fn, task::Poll};

use consumer_core::{Event, Source};
use tokio::time::timeout;

use super::super::broker::{BrokerUnderTest, Case, distinct, sorted};
use crate::drive::drive_until;

/// A crash loses nothing (failure mode 02, as far as the source goes), and what was flushed before it holds, however much
/// it was: a broker may take in the first acks at once and leave the others waiting in the connection.
pub async fn a_crash_brings_back_what_was_not_acked<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_crash_brings_back_what_was_not_acked", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..204).await;
    let mut member = case.member(&group).await;
    let taken = member.take(204, case.rule).await;
    member.ack(&taken[..200]);
    member.flush().await;
    drop(member);
    let mut next = case.member(&group).await;
    let again = next.take(4, case.rule).await;
    assert_eq!(sorted(&again), [200, 201, 202, 203], "a_crash_brings_back_what_was_not_acked");
    next.close().await;
}

/// A source says that its connection is gone and ends the scopes that were on it, comes back by itself, and goes on.
pub async fn a_lost_connection_is_reported<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_lost_connection_is_reported", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..1).await;
    let mut member = case.member(&group).await;
    let held = member.take(1, case.rule).await;
    let connected = member.wait_for(|events| events.contains(&Event::Connected)).await;
    assert!(connected, "a_lost_connection_is_reported: it is connected");
    member.events.clear();
    subject.cut().await;
    let scope = held[0].tag.scope;
    let back = member
        .wait_for(|events| {
            let at = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted);
            let gone = at(&|event| *event == Event::Disconnected);
            let back = events.iter().rposition(|event| *event == Event::Connected);
            let closing =
                at(&|event| matches!(event, Event::Closing { scope: ended, .. } if *ended == scope));
            gone.is_some() && back > gone && closing.is_some()
        })
        .await;
    assert!(back, "a_lost_connection_is_reported: got {:?}", member.events);
    let again = member.take(1, "a_lost_connection_is_reported: messages come again").await;
    assert_ne!(again[0].tag.scope, scope, "a_lost_connection_is_reported: a scope that has ended comes back");
    member.ack(&again);
    member.close().await;
    case.nothing_is_left(&group, 1).await;
}

/// After a lost connection, what was held comes again, to the same source too. What was acked and flushed before does
/// not, however much it was, and an ack of a delivery from before changes nothing (failure mode 14).
pub async fn a_lost_connection_brings_back_what_was_held<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_lost_connection_brings_back_what_was_held", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..203).await;
    let mut member = case.member(&group).await;
    let taken = member.take(203, case.rule).await;
    member.ack(&taken[..200]);
    member.flush().await;
    subject.cut().await;
    let again = member.take(3, case.rule).await;
    assert_eq!(sorted(&again), [200, 201, 202], "a_lost_connection_brings_back_what_was_held");
    member.ack(&taken);
    member.flush().await;
    member.close().await;

    let mut next = case.member(&group).await;
    let still = next.take(3, "a_lost_connection_brings_back_what_was_held: a stale tag has acked").await;
    assert_eq!(
        sorted(&still),
        [200, 201, 202],
        "a_lost_connection_brings_back_what_was_held: no ack was valid"
    );
    next.ack(&still);
    next.close().await;
    case.nothing_is_left(&group, 203).await;
}

/// A flush that was begun and given up does not answer for what is acked after it: that would be lost with the connection.
pub async fn a_flush_answers_for_all_that_was_acked<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_flush_answers_for_all_that_was_acked", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..200).await;
    let mut member = case.member(&group).await;
    let taken = member.take(200, case.rule).await;
    member.ack(&taken[..100]);
    let begun = poll_fn(|cx| Poll::Ready(member.source().poll_flush(cx))).await;
    assert!(!matches!(begun, Poll::Ready(Err(_))), "a_flush_answers_for_all_that_was_acked: {begun:?}");
    member.ack(&taken[100..]);
    member.flush().await;
    subject.cut().await;
    drop(member);
    case.nothing_is_left(&group, 200).await;
}

/// A flush fails when something that was acked went with its connection: once, and before the loss is noticed as well as
/// after it.
pub async fn a_flush_tells_what_was_lost<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_flush_tells_what_was_lost", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..2).await;
    let mut member = case.member(&group).await.keep_scopes();
    let mut scope = 0;
    for noticed in [false, true] {
        let taken = member.take(2, case.rule).await;
        scope = taken[0].tag.scope;
        member.events.clear();
        subject.cut().await;
        let gone = |events: &[Event]| events.contains(&Event::Disconnected);
        if noticed {
            assert!(member.wait_for(gone).await, "a_flush_tells_what_was_lost: it is disconnected");
        }
        member.ack(&taken);
        let flushed =
            timeout(subject.patience(), poll_fn(|cx| member.source().poll_flush(cx))).await.expect(case.rule);
        assert!(flushed.is_err(), "a_flush_tells_what_was_lost: noticed: {noticed}");
        assert!(member.wait_for(gone).await, "a_flush_tells_what_was_lost: it is disconnected");
        member.source().release(scope);
    }
    let again = member.take(2, case.rule).await;
    assert_eq!(sorted(&again), [0, 1], "a_flush_tells_what_was_lost: none of the acks has arrived");
    assert_eq!(member.unsettled(scope), 2, "a_flush_tells_what_was_lost: acks after the connection was lost");
    member.ack(&again);
    member.flush().await;
    member.close().await;
    case.nothing_is_left(&group, 2).await;
}

/// Connections that are lost again and again, with acks on their way, lose no message.
pub async fn cuts_lose_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "cuts_lose_nothing", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..100).await;
    let mut member = case.member(&group).await.demand(10).acking();
    for round in 1..=5 {
        let got = drive_until(&mut [&mut member], |members| distinct(members).len() >= 20 * round).await;
        assert!(got, "cuts_lose_nothing: {} before cut {round}", distinct(&[&mut member]).len());
        if round < 5 {
            subject.cut().await;
        }
    }
    member.close().await;
}
