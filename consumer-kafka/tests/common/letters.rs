//! What tests of dead letters have in common.

use std::time::Duration;

use consumer_core::{
    Message, Outgoing, Publisher,
    dead_letters::{DeadLetter, DeadLetters, DeadLettersError, Letters, Place, Settled},
};
use consumer_kafka::KafkaAdmin;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use tokio::time::timeout;

use super::*;

pub(crate) const DISCARDED: Settled = Settled::Discarded;

pub(crate) async fn open(brokers: &str, topic: &str) -> Box<dyn Letters> {
    let letters = KafkaAdmin::new(brokers).unwrap().dead_letters(topic);
    timeout(LIMIT, letters.open()).await.expect("opened in time").unwrap()
}

pub(crate) async fn next(letters: &mut Box<dyn Letters>) -> Result<Option<DeadLetter>, DeadLettersError> {
    timeout(LIMIT, letters.next()).await.expect("a letter in time")
}

pub(crate) async fn rest(letters: &mut Box<dyn Letters>) -> Vec<DeadLetter> {
    let mut all = Vec::new();
    while let Some(letter) = next(letters).await.unwrap() {
        all.push(letter);
    }
    all
}

/// Everything a new session shows.
pub(crate) async fn list(brokers: &str, topic: &str) -> Vec<DeadLetter> {
    rest(&mut open(brokers, topic).await).await
}

pub(crate) fn numbers(letters: &[DeadLetter]) -> Vec<u32> {
    letters.iter().map(|letter| number(letter.message())).collect()
}

pub(crate) fn places(letters: &[DeadLetter]) -> Vec<(u64, u64)> {
    letters.iter().map(|letter| (letter.place().scope, letter.place().seq)).collect()
}

pub(crate) async fn discard(letters: &mut Box<dyn Letters>, places: impl IntoIterator<Item = Place>) {
    let settled: Vec<_> = places.into_iter().map(|place| letters.settle(place, DISCARDED)).collect();
    for answer in settled {
        timeout(LIMIT, answer).await.expect("an answer in time").unwrap();
    }
}

pub(crate) fn driver(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

pub(crate) fn administration(brokers: &str) -> AdminClient<DefaultClientContext> {
    driver(brokers).create().unwrap()
}

pub(crate) async fn delete(brokers: &str, topic: &str) {
    let answers = administration(brokers).delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    assert!(answers[0].is_ok(), "{answers:?}");
    let admin = KafkaAdmin::new(brokers).unwrap();
    let gone = async {
        while admin.partitions(topic).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("deleted in time");
}

/// 20,000 letters of 100 MB, of which a reader holds a part.
pub(crate) async fn fill(brokers: &str, topic: &str) {
    let publisher = publisher(brokers);
    let payload = "x".repeat(5000);
    let sent: Vec<_> =
        (0..20_000).map(|_| publisher.publish(Outgoing::new(topic, Message::new(payload.clone())))).collect();
    for answer in sent {
        answer.await.unwrap();
    }
}

/// Writes records to a topic of one partition, as they are.
pub(crate) async fn write(brokers: &str, topic: &str, records: &[(&str, Option<&str>)]) {
    for (key, value) in records {
        let mut message = Message::builder().key(key.to_string());
        if let Some(value) = value {
            message = message.payload(value.to_string());
        }
        publisher(brokers).publish(Outgoing::new(topic, message.build())).await.unwrap();
    }
}
