//! When a message is confirmed, and what holds then.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use consumer_core::{Message, Outgoing, Publisher};

use super::super::broker::{BrokerUnderTest, Case, distinct, numbers, sorted};
use crate::{drive::drive_until, unique};

/// How long a publish that met a cut waits before it is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// A confirmed message is there.
pub async fn what_is_confirmed_is_delivered<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_is_confirmed_is_delivered", 1).await;
    let group = case.group().await;
    for n in 0..10 {
        case.publish_numbers(n..n + 1).await;
        let mut member = case.member(&group).await;
        let taken = member.take(1, case.rule).await;
        assert_eq!(numbers(&taken), [n], "what_is_confirmed_is_delivered");
        member.ack(&taken);
        member.close().await;
    }
}

/// The message is enqueued by the call, not by the first poll: futures that are dropped unpolled have published.
pub async fn a_dropped_future_publishes_all_the_same<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_dropped_future_publishes_all_the_same", 1).await;
    let group = case.group().await;
    for n in 0..20_u32 {
        drop(case.publisher.publish(case.to(Message::builder().payload(n.to_string()).key("key").build())));
    }
    let mut member = case.member(&group).await;
    let taken = member.take(20, case.rule).await;
    assert_eq!(sorted(&taken), (0..20).collect::<Vec<_>>(), "a_dropped_future_publishes_all_the_same");
    member.ack(&taken);
    member.close().await;
}

/// Many messages may be on their way at once, and each is confirmed.
pub async fn many_may_be_in_flight<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "many_may_be_in_flight", 3).await;
    let group = case.group().await;
    let publish = |n: u32| {
        case.publisher.publish(case.to(Message::builder().payload(n.to_string()).key(n.to_string()).build()))
    };
    let sent: Vec<_> = (0..500).map(publish).collect();
    for publish in sent {
        case.answer(publish).await.expect("many_may_be_in_flight: confirmed");
    }
    let mut member = case.member(&group).await;
    member.set_room(1_000);
    let taken = member.take(500, case.rule).await;
    assert_eq!(
        sorted(&taken),
        (0..500).collect::<Vec<_>>(),
        "many_may_be_in_flight: each is there, and once"
    );
    member.ack(&taken);
    member.close().await;
}

/// Publishing to nowhere is never confirmed (failure mode 20).
pub async fn a_missing_target_is_an_error<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_missing_target_is_an_error", 1).await;
    let publish = case.publisher.publish(Outgoing::new(unique("missing"), Message::new("lost")));
    let answer = case.answer(publish).await;
    let error = answer.expect_err("a_missing_target_is_an_error: it was confirmed");
    assert!(error.is_unroutable(), "a_missing_target_is_an_error: got {error:?}");
    assert!(!error.is_transient(), "a_missing_target_is_an_error: trying again does not help");
}

/// `not_before` holds a message back and does not lose it.
pub async fn a_message_for_later_comes_later<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_message_for_later_comes_later", 1).await;
    let group = case.group().await;
    let wait = Duration::from_secs(2);
    case.send(case.to(Message::new("later")).not_before(SystemTime::now() + wait)).await;
    case.publish(Message::new("now")).await;
    let mut member = case.member(&group).await;
    let taken = member.take(2, case.rule).await;
    assert_eq!(&taken[0].message.payload()[..], b"now", "a_message_for_later_comes_later");
    assert_eq!(&taken[1].message.payload()[..], b"later", "a_message_for_later_comes_later: in the end");
    member.ack(&taken);
    member.close().await;
}

/// A publish that is in flight at a cut is answered in time: it is confirmed, and then the message is there, or it is a
/// transient error. Cut at several moments, from before the first answer on.
pub async fn a_cut_loses_no_publish_silently<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_cut_loses_no_publish_silently", 1).await;
    let group = case.group().await;
    let mut confirmed = BTreeSet::new();
    for round in 0..5_u32 {
        let range = round * 100..round * 100 + 100;
        let publish = |n: u32| {
            let message = Message::builder().payload(n.to_string()).key("key").build();
            (n, case.publisher.publish(case.to(message)))
        };
        let mut sent = range.map(publish);
        // Those that were called are in flight; the rest is called after the cut.
        let in_flight: Vec<_> = sent.by_ref().take(80).collect();
        let mut answers = Vec::new();
        let mut in_flight = in_flight.into_iter();
        for (n, publish) in in_flight.by_ref().take(round as usize * 15) {
            answers.push((n, case.answer(publish).await));
        }
        subject.cut().await;
        for (n, publish) in in_flight.chain(sent.collect::<Vec<_>>()) {
            answers.push((n, case.answer(publish).await));
        }
        for (n, answer) in answers {
            match answer {
                Ok(()) => drop(confirmed.insert(n)),
                Err(error) => assert!(
                    error.is_transient(),
                    "a_cut_loses_no_publish_silently: a cut is transient, got {error:?}"
                ),
            }
        }
    }
    let mut member = case.member(&group).await.acking();
    let all = drive_until(&mut [&mut member], |members| {
        let got: BTreeSet<_> = distinct(members).into_iter().collect();
        confirmed.is_subset(&got)
    })
    .await;
    let got: BTreeSet<_> = distinct(&[&mut member]).into_iter().collect();
    let lost: Vec<_> = confirmed.difference(&got).collect();
    assert!(all, "a_cut_loses_no_publish_silently: confirmed and lost: {lost:?}");
    member.close().await;
}

/// A publisher whose connection was cut comes back: publishing again succeeds in time.
pub async fn a_publisher_survives_a_cut<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_publisher_survives_a_cut", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..1).await;
    subject.cut().await;
    let again = async {
        let outgoing = case.to(Message::builder().payload("1").key("key").build());
        while let Err(error) = case.publisher.publish(outgoing.clone()).await {
            assert!(error.is_transient(), "a_publisher_survives_a_cut: a cut is transient, got {error:?}");
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    };
    case.answer(again).await.expect("only what succeeds ends");
    let mut member = case.member(&group).await.acking();
    let both = drive_until(&mut [&mut member], |members| distinct(members) == [0, 1]).await;
    assert!(both, "a_publisher_survives_a_cut: got {:?}", distinct(&[&mut member]));
    member.close().await;
}
