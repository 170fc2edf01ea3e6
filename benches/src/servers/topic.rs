//! Topics full of orders.

use std::time::Duration;

use consumer_kafka::KafkaAdmin;
use rdkafka::{
    ClientConfig,
    consumer::StreamConsumer,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::Fallible;

const PARTITIONS: u32 = 4;
const PAYLOAD: usize = 256;
/// One in so many messages repeats an earlier one.
const DUPLICATE_EVERY: usize = 10;
/// How far back the repeated one is: further than what is in flight, as a publisher's retry usually is.
const BEHIND: usize = 5_000;

/// A topic and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) messages: usize,
    pub(super) unique: usize,
}

impl Topic {
    /// Creates it and fills it.
    pub(super) async fn fill(kafka: &str, name: &str, messages: usize) -> Fallible<Self> {
        let name = format!("bench-{name}-{}", std::process::id());
        KafkaAdmin::new(kafka)?.ensure_topic(&name, PARTITIONS, &[]).await?;
        let topic = Self { name, messages, unique: (0..messages).filter(|n| original(*n) == *n).count() };
        let (kafka, filled) = (kafka.to_owned(), topic.clone());
        tokio::task::spawn_blocking(move || filled.produce(&kafka)).await??;
        Ok(topic)
    }

    fn produce(&self, kafka: &str) -> Fallible<()> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "100000")
            .create()?;
        for n in 0..self.messages {
            let (key, id) = (format!("o-{}", original(n)), id(original(n)));
            let payload = payload(original(n));
            let headers = OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) });
            let mut record = BaseRecord::to(&self.name).key(&key).payload(&payload).headers(headers);
            while let Err((error, back)) = producer.send(record) {
                if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.flush(Duration::from_secs(60))?;
        Ok(())
    }

    /// A consumer written by hand, in a group of its own.
    pub(super) fn hand_written(&self, kafka: &str, group: &str) -> Fallible<StreamConsumer> {
        use rdkafka::consumer::Consumer;
        let consumer: StreamConsumer = self.config(kafka, group).create()?;
        consumer.subscribe(&[&self.name])?;
        Ok(consumer)
    }

    pub(super) fn config(&self, kafka: &str, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", kafka)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest");
        config
    }
}

/// The message that number `n` is, or repeats.
pub(super) fn original(n: usize) -> usize {
    if n % DUPLICATE_EVERY == DUPLICATE_EVERY - 1 && n > BEHIND { n - BEHIND - 1 } else { n }
}

pub(super) fn id(n: usize) -> String {
    format!("{:032x}", (n as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
}

pub(super) fn payload(n: usize) -> String {
    let mut text =
        format!("{{\"order_id\":\"o-{n}\",\"email\":\"ann@example.com\",\"total\":1999,\"note\":\"");
    text.extend(std::iter::repeat_n('x', PAYLOAD - text.len() - 2));
    text + "\"}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_repeats_an_original() {
        let repeated: Vec<usize> = (0..100_000).filter(|n| original(*n) != *n).collect();
        assert_eq!(repeated.len(), 9_500);
        assert!(repeated.iter().all(|n| original(original(*n)) == original(*n)));
    }

    #[test]
    fn a_payload_has_256_bytes() {
        assert_eq!([payload(0).len(), payload(999_999).len()], [256, 256]);
    }
}
