use std::time::{Duration, SystemTime};

use super::*;
use crate::{Message, message::wire};

const PLACE: Place = Place { scope: 3, seq: 17 };

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn letter(headers: &[(&'static str, &'static str)]) -> DeadLetter {
    let mut message = Message::builder().payload("x").key("k");
    for (name, value) in headers {
        message = message.header(*name, *value);
    }
    DeadLetter::new(PLACE, message.build())
}

const OURS: [(&str, &str); 9] = [
    ("message-id", "id-1"),
    ("dead-letter-reason", "permanent"),
    ("dead-letter-error", "no such address"),
    ("dead-letter-attempts", "3"),
    ("dead-letter-consumer", "mails"),
    ("dead-letter-last-failed-at", "2023-11-14T22:13:20.042Z"),
    ("dead-letter-source", "kafka"),
    ("dead-letter-topic", "orders"),
    ("dead-letter-offset", "7"),
];

#[test]
fn a_letter_says_what_happened() {
    let letter = letter(&OURS);
    assert_eq!(
        (letter.reason(), letter.consumer(), letter.attempts()),
        ("permanent", Some("mails"), Some(3))
    );
    assert_eq!(letter.error().as_deref(), Some("no such address"));
    assert_eq!((letter.origin(), letter.id().as_deref()), (Some("orders"), Some("id-1")));
    assert_eq!(letter.last_failed_at(), Some(now() + Duration::from_millis(42)));
    assert_eq!(letter.place().to_string(), "3@17");
}

#[test]
fn what_a_broker_set_aside_has_its_reason_and_queue() {
    let death = BrokerDeath::new("orders", "delivery_limit").at(now());
    let broken = letter(&[]).with_death(Some(death.clone()));
    assert_eq!((broken.reason(), broken.origin()), ("broker", Some("orders")));
    assert!(broken.error().is_some_and(|error| error.contains("delivery_limit")));
    assert_eq!(broken.last_failed_at(), Some(now()));
    let ours = letter(&OURS).with_death(Some(death));
    assert_eq!((ours.reason(), ours.error().as_deref()), ("permanent", Some("no such address")));
    let foreign = letter(&[]);
    assert_eq!((foreign.reason(), foreign.origin()), ("unknown", None));
    assert!(redriven(&foreign, None, now()).is_err());
    assert_eq!(redriven(&foreign, Some("orders".into()), now()).unwrap().target(), "orders");
}

#[test]
fn fm09_a_redriven_message_is_the_original_with_its_count() {
    let outgoing = redriven(&letter(&OURS), None, now()).unwrap();
    assert_eq!(outgoing.target(), "orders");
    let headers = outgoing.headers();
    assert_eq!(headers.get_str("redrive-count"), Some("1"));
    assert_eq!(headers.get_str("redriven-at"), Some("2023-11-14T22:13:20.000Z"));
    assert_eq!(headers.get_str("redrive-topic"), Some("orders"));
    assert_eq!(headers.get_str("redrive-offset"), Some("7"));
    assert_eq!(headers.get_str("message-id"), Some("id-1"));
    assert!(headers.iter().all(|(name, _)| !name.starts_with(wire::DEAD_LETTER_PREFIX)), "{headers:?}");
    assert_eq!(&outgoing.message().payload()[..], b"x");
}

#[test]
fn headers_of_a_retry_lead_nowhere_and_are_taken_off() {
    let mut all = OURS.to_vec();
    all.extend([
        ("retry-source", "kafka"),
        ("retry-topic", "elsewhere"),
        ("retry-offset", "2"),
        ("retry-round", "3"),
    ]);
    let outgoing = redriven(&letter(&all), None, now()).unwrap();
    let headers = outgoing.headers();
    assert_eq!((outgoing.target(), headers.get_str("redrive-offset")), ("orders", Some("7")));
    assert!(headers.iter().all(|(name, _)| !name.starts_with("retry-")), "the rounds start anew");
}

#[test]
fn a_second_redrive_counts_on_and_keeps_the_first_position() {
    let mut all = OURS.to_vec();
    all.extend([
        ("redrive-count", "1"),
        ("redrive-source", "kafka"),
        ("redrive-topic", "orders"),
        ("redrive-offset", "1"),
    ]);
    let headers = redriven(&letter(&all), None, now()).unwrap().headers();
    assert_eq!(headers.get_str("redrive-count"), Some("2"));
    assert_eq!(headers.get_str("redrive-offset"), Some("1"));
    assert_eq!(headers.get_all("redrive-count").count(), 1);
}

#[test]
fn what_cannot_be_read_counts_as_absent() {
    let odd = letter(&[
        ("dead-letter-attempts", "many"),
        ("redrive-count", "-1"),
        ("dead-letter-last-failed-at", "x"),
    ]);
    assert_eq!((odd.attempts(), odd.redrive_count()), (None, 0));
    assert_eq!(
        redriven(&odd, Some("t".into()), now()).unwrap().headers().get_str("redrive-count"),
        Some("1")
    );
    let full = letter(&[("redrive-count", "4294967295")]);
    assert!(redriven(&full, Some("t".into()), now()).is_err(), "it would be taken for the redrive before");
}
