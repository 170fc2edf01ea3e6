//! What every publisher has to do, seen through a source of the same broker.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use consumer_core::{Headers, Message, Outgoing, Publisher, message::wire};

use super::broker::{BrokerUnderTest, Case};
use crate::unique;

/// Runs every rule that the broker's [capabilities](super::Capabilities) call for.
///
/// # Panics
/// When one is broken, with its name.
pub async fn run_all<T: BrokerUnderTest>(subject: &T) {
    macro_rules! rules {
        ($($rule:ident)*) => {
            $(
                tracing::debug!(rule = stringify!($rule), "publisher conformance");
                $rule(subject).await;
            )*
        };
    }
    rules! {
        what_is_confirmed_is_delivered
        a_dropped_future_publishes_all_the_same
        many_may_be_in_flight
        a_missing_target_is_an_error
        payload_and_key_are_kept
        a_large_payload_is_kept
        a_tombstone_is_no_empty_payload
        headers_are_kept_as_they_are
        headers_are_changed_as_asked
        an_id_is_given_where_there_is_none
        the_origin_names_the_topic
        a_message_for_later_comes_later
    }
}

async fn round_trip<T: BrokerUnderTest>(case: &Case<'_, T>, outgoing: Outgoing) -> Message {
    case.send(outgoing).await;
    let mut member = case.member(&unique("group")).await;
    let mut taken = member.take(1, case.rule).await;
    member.ack(&taken);
    member.close().await;
    taken.remove(0).message
}

/// A confirmed message is there.
pub async fn what_is_confirmed_is_delivered<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_is_confirmed_is_delivered", 1).await;
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), Message::new("hello"))).await;
    assert_eq!(&got.payload()[..], b"hello", "what_is_confirmed_is_delivered");
}

/// The message is enqueued by the call, not by the first poll.
pub async fn a_dropped_future_publishes_all_the_same<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_dropped_future_publishes_all_the_same", 1).await;
    drop(case.publisher.publish(Outgoing::new(case.topic.as_str(), Message::new("dropped"))));
    let mut member = case.member(&unique("group")).await;
    let taken = member.take(1, case.rule).await;
    assert_eq!(&taken[0].message.payload()[..], b"dropped", "a_dropped_future_publishes_all_the_same");
    member.ack(&taken);
    member.close().await;
}

/// Many messages may be on their way at once, and each is confirmed.
pub async fn many_may_be_in_flight<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "many_may_be_in_flight", 3).await;
    let publish = |n: u32| {
        let message = Message::builder().payload(n.to_string()).key(n.to_string()).build();
        case.publisher.publish(Outgoing::new(case.topic.as_str(), message))
    };
    let sent: Vec<_> = (0..500).map(publish).collect();
    for publish in sent {
        let published = tokio::time::timeout(subject.patience(), publish).await;
        published
            .expect("many_may_be_in_flight: confirmed in time")
            .expect("many_may_be_in_flight: confirmed");
    }
    let mut member = case.member(&unique("group")).await;
    member.set_room(1_000);
    let taken = member.take(500, case.rule).await;
    let distinct: BTreeSet<_> = taken.iter().map(|delivery| delivery.message.payload().clone()).collect();
    assert_eq!(distinct.len(), 500, "many_may_be_in_flight: all of them are there, each once");
    member.ack(&taken);
    member.close().await;
}

/// Publishing to nowhere is never confirmed (failure mode 20).
pub async fn a_missing_target_is_an_error<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().unroutable {
        return;
    }
    let publisher = subject.publisher().await;
    let publish = publisher.publish(Outgoing::new(unique("missing"), Message::new("lost")));
    let answer = tokio::time::timeout(subject.patience(), publish).await;
    let error = answer.expect("a_missing_target_is_an_error: answered in time");
    let error = error.expect_err("a_missing_target_is_an_error: it was confirmed");
    assert!(error.is_unroutable(), "a_missing_target_is_an_error: got {error:?}");
    assert!(!error.is_transient(), "a_missing_target_is_an_error: trying again does not help");
}

/// Payload, key and id are kept byte for byte.
pub async fn payload_and_key_are_kept<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "payload_and_key_are_kept", 2).await;
    let binary = Bytes::from_static(b"\0\xff\r\n");
    let message = Message::builder().payload(binary.clone()).key("key").id("id-1").build();
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), message)).await;
    assert_eq!(got.payload(), &binary, "payload_and_key_are_kept: payload");
    assert_eq!(got.key().map(|key| &key[..]), Some(&b"key"[..]), "payload_and_key_are_kept: key");
    assert_eq!(got.id().map(|id| &id[..]), Some(&b"id-1"[..]), "payload_and_key_are_kept: id");

    let case = Case::new(subject, "payload_and_key_are_kept", 1).await;
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), Message::new(""))).await;
    assert!(got.payload().is_empty() && !got.is_tombstone(), "payload_and_key_are_kept: an empty payload");
    assert_eq!(got.key(), None, "payload_and_key_are_kept: no key");
}

/// A payload just below 1 MiB comes through (a usual broker's limit counts headers as well).
pub async fn a_large_payload_is_kept<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_large_payload_is_kept", 1).await;
    let large: Vec<u8> = (0..(1 << 20) - 4_096).map(|n: u32| (n % 251) as u8).collect();
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), Message::new(large.clone()))).await;
    assert!(got.payload()[..] == large[..], "a_large_payload_is_kept");
}

/// Null stays null.
pub async fn a_tombstone_is_no_empty_payload<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().tombstones {
        return;
    }
    let case = Case::new(subject, "a_tombstone_is_no_empty_payload", 1).await;
    let message = Message::builder().key("gone").build();
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), message)).await;
    assert!(got.is_tombstone(), "a_tombstone_is_no_empty_payload");
    assert_eq!(got.key().map(|key| &key[..]), Some(&b"gone"[..]), "a_tombstone_is_no_empty_payload: key");
}

/// Order, repetition, null and bytes of headers are kept.
pub async fn headers_are_kept_as_they_are<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().all_headers {
        return;
    }
    let case = Case::new(subject, "headers_are_kept_as_they_are", 1).await;
    let mut headers = Headers::new();
    headers.append("z", "1");
    headers.append("a", "2");
    headers.append("z", "3");
    headers.append_null("null");
    headers.append("empty", "");
    headers.append("binary", Bytes::from_static(b"\0\xfe\xff"));
    headers.append("Umläut", "ä");
    let message = Message::builder().payload("x").headers(headers.clone()).build();
    let got = round_trip(&case, Outgoing::copy(case.topic.as_str(), message)).await;
    let list = |headers: &Headers| -> Vec<(String, Option<Bytes>)> {
        headers.iter().map(|(name, value)| (name.to_owned(), value.cloned())).collect()
    };
    assert_eq!(list(got.headers()), list(&headers), "headers_are_kept_as_they_are");
}

/// What a publishing sets replaces, what it removes is gone, and the rest stays.
pub async fn headers_are_changed_as_asked<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "headers_are_changed_as_asked", 1).await;
    let message = Message::builder()
        .payload("x")
        .header("kept", "1")
        .header("dead-letter-old", "2")
        .header("dead-letter-reason", "forged")
        .build();
    let outgoing = Outgoing::copy(case.topic.as_str(), message)
        .remove_prefix("dead-letter-")
        .set("dead-letter-reason", "permanent");
    let got = round_trip(&case, outgoing).await;
    assert_eq!(got.headers().get_str("kept"), Some("1"), "headers_are_changed_as_asked: others stay");
    assert!(
        !got.headers().contains("dead-letter-old"),
        "headers_are_changed_as_asked: the prefix is removed"
    );
    let reasons: Vec<_> = got.headers().get_all("dead-letter-reason").collect();
    assert_eq!(
        reasons,
        [Some(&Bytes::from("permanent"))],
        "headers_are_changed_as_asked: what is set replaces"
    );
}

/// A new message has an id for consumers to deduplicate by; a copy is left as it is.
pub async fn an_id_is_given_where_there_is_none<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_id_is_given_where_there_is_none", 1).await;
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), Message::new("x"))).await;
    assert!(got.id().is_some(), "an_id_is_given_where_there_is_none: new");
    assert!(got.headers().contains(wire::MESSAGE_ID), "an_id_is_given_where_there_is_none: as a header");
    let case = Case::new(subject, "an_id_is_given_where_there_is_none", 1).await;
    let got = round_trip(&case, Outgoing::copy(case.topic.as_str(), Message::new("x"))).await;
    assert_eq!(got.id(), None, "an_id_is_given_where_there_is_none: a copy");
}

/// Logs and dead letters name the place a message came from.
pub async fn the_origin_names_the_topic<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "the_origin_names_the_topic", 1).await;
    let got = round_trip(&case, Outgoing::new(case.topic.as_str(), Message::new("x"))).await;
    assert_eq!(got.origin().name(), case.topic, "the_origin_names_the_topic: got {:?}", got.origin());
}

/// `not_before` holds a message back and does not lose it.
pub async fn a_message_for_later_comes_later<T: BrokerUnderTest>(subject: &T) {
    if !subject.capabilities().delayed {
        return;
    }
    let case = Case::new(subject, "a_message_for_later_comes_later", 1).await;
    let wait = Duration::from_secs(2);
    let later =
        Outgoing::new(case.topic.as_str(), Message::new("later")).not_before(SystemTime::now() + wait);
    case.send(later).await;
    case.publish(Message::new("now")).await;
    let mut member = case.member(&unique("group")).await;
    let taken = member.take(2, case.rule).await;
    assert_eq!(&taken[0].message.payload()[..], b"now", "a_message_for_later_comes_later");
    assert_eq!(&taken[1].message.payload()[..], b"later", "a_message_for_later_comes_later: in the end");
    member.ack(&taken);
    member.close().await;
}
