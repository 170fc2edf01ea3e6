//! What a message still is when it has been published and delivered.

use bytes::Bytes;
use consumer_core::{Headers, Message, Outgoing, message::wire};

use super::super::broker::{BrokerUnderTest, Case};

impl<T: BrokerUnderTest> Case<'_, T> {
    /// Publishes, and answers with what is delivered.
    async fn round_trip(&self, outgoing: Outgoing) -> Message {
        let group = self.group().await;
        self.round_trip_in(&group, outgoing).await
    }

    async fn round_trip_in(&self, group: &str, outgoing: Outgoing) -> Message {
        self.send(outgoing).await;
        let mut member = self.member(group).await;
        let mut taken = member.take(1, self.rule).await;
        member.ack(&taken);
        member.close().await;
        taken.remove(0).message
    }

    /// A message that is published as it is, without an id.
    fn copy(&self, message: Message) -> Outgoing {
        Outgoing::copy(self.topic.as_str(), message)
    }
}

/// Payload, key and id are kept byte for byte.
pub async fn payload_and_key_are_kept<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "payload_and_key_are_kept", 2).await;
    let binary = Bytes::from_static(b"\0\xff\r\n");
    let message = Message::builder().payload(binary.clone()).key("key").id("id-1").build();
    let got = case.round_trip(case.to(message)).await;
    assert_eq!(got.payload(), &binary, "payload_and_key_are_kept: payload");
    assert_eq!(got.key().map(|key| &key[..]), Some(&b"key"[..]), "payload_and_key_are_kept: key");
    assert_eq!(got.id().map(|id| &id[..]), Some(&b"id-1"[..]), "payload_and_key_are_kept: id");
}

/// An empty payload is kept, and is no tombstone; where there was no key, there is none.
pub async fn an_empty_payload_is_kept<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_empty_payload_is_kept", 1).await;
    let got = case.round_trip(case.to(Message::new(""))).await;
    assert!(got.payload().is_empty(), "an_empty_payload_is_kept: got {:?}", got.payload());
    assert!(!got.is_tombstone(), "an_empty_payload_is_kept: it has become null");
    assert_eq!(got.key(), None, "an_empty_payload_is_kept: no key");
}

/// A payload of 900 KiB comes through: usual limits are 1 MiB and count headers as well.
pub async fn a_large_payload_is_kept<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_large_payload_is_kept", 1).await;
    let large: Vec<u8> = (0..900_u32 << 10).map(|n| (n % 251) as u8).collect();
    let got = case.round_trip(case.to(Message::new(large.clone()))).await;
    assert!(got.payload()[..] == large[..], "a_large_payload_is_kept: {} bytes came", got.payload().len());
}

/// Null stays null.
pub async fn a_tombstone_is_no_empty_payload<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_tombstone_is_no_empty_payload", 1).await;
    let got = case.round_trip(case.to(Message::builder().key("gone").build())).await;
    assert!(got.is_tombstone(), "a_tombstone_is_no_empty_payload");
    assert_eq!(got.key().map(|key| &key[..]), Some(&b"gone"[..]), "a_tombstone_is_no_empty_payload: key");
}

/// Text and binary values are found under their names, whatever else the broker does to headers.
pub async fn headers_are_kept_by_name<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "headers_are_kept_by_name", 1).await;
    let values = [
        ("tenant", Bytes::from_static(b"acme")),
        ("place", Bytes::from_static("Köln".as_bytes())),
        ("number", Bytes::from_static(b"0042")),
        ("binary", Bytes::from_static(b"\0\xfe\xff\r\n")),
    ];
    let mut headers = Headers::new();
    for (name, value) in &values {
        headers.append(*name, value.clone());
    }
    let message = Message::builder().payload("x").headers(headers).build();
    for outgoing in [case.to(message.clone()), case.copy(message)] {
        let got = case.round_trip(outgoing).await;
        for (name, value) in &values {
            assert_eq!(got.headers().get(name), Some(value), "headers_are_kept_by_name: {name}");
        }
    }
}

/// Order, repetition, null and bytes of headers are kept.
pub async fn headers_are_kept_as_they_are<T: BrokerUnderTest>(subject: &T) {
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
    let got = case.round_trip(case.copy(message)).await;
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
    let outgoing = case.copy(message).remove_prefix("dead-letter-").set("dead-letter-reason", "permanent");
    let got = case.round_trip(outgoing).await;
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
    let group = case.group().await;
    let got = case.round_trip_in(&group, case.to(Message::new("x"))).await;
    assert!(got.id().is_some(), "an_id_is_given_where_there_is_none: new");
    assert!(got.headers().contains(wire::MESSAGE_ID), "an_id_is_given_where_there_is_none: as a header");
    let got = case.round_trip_in(&group, case.copy(Message::new("x"))).await;
    assert_eq!(got.id(), None, "an_id_is_given_where_there_is_none: a copy");
}

/// Logs and dead letters name the place a message came from.
pub async fn the_origin_names_the_topic<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "the_origin_names_the_topic", 1).await;
    let group = case.group().await;
    let got = case.round_trip_in(&group, case.to(Message::new("x"))).await;
    let expected = subject.origin_name(&group, &case.topic);
    assert_eq!(got.origin().name(), expected, "the_origin_names_the_topic: got {:?}", got.origin());
}
