//! The publisher and the administration client against a real broker.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::*;
use consumer_core::{Message, Outgoing, Publisher, Source};
use consumer_kafka::{KafkaAdmin, KafkaPublisher};
use tokio::time::timeout;
use xtask::servers::{Kafka, shared_kafka};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm20_a_topic_that_does_not_exist_is_an_error_and_is_not_created() {
    // Even where the broker would create it.
    let kafka = Kafka::builder().property("auto.create.topics.enable", "true").start().unwrap();
    let topic = unique("missing");
    let publisher = publisher(&kafka.bootstrap());
    let error =
        timeout(LIMIT, publisher.publish(Outgoing::new(topic.as_str(), Message::new("x")))).await.unwrap();
    let error = error.unwrap_err();
    assert!(error.is_unroutable() && !error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&topic) && error.to_string().contains(&kafka.bootstrap()), "{error}");
    assert_eq!(KafkaAdmin::new(kafka.bootstrap()).unwrap().partitions(&topic).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_message_that_is_too_large_is_told_so() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let large = Message::new(vec![b'x'; 4_400_000]);
    let error = publisher(&brokers).publish(Outgoing::new(topic.as_str(), large)).await.unwrap_err();
    assert!(error.is_too_large(), "{error:?}");
    assert!(error.to_string().contains(&topic), "{error}");
    let fits = Message::new(vec![b'x'; 4_000_000]);
    publisher(&brokers).publish(Outgoing::new(topic.as_str(), fits)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn with_a_small_queue_of_the_driver_everything_goes_out_in_order() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let publisher =
        KafkaPublisher::builder(&brokers).property("queue.buffering.max.messages", "10").build().unwrap();
    produce(&publisher, &topic, 0..2000).await;
    let got = contents(&brokers, &topic, 2000).await;
    assert!(got.iter().map(number).eq(0..2000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_dropped_future_and_a_dropped_publisher_do_not_drop_the_message() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let publisher = publisher(&brokers);
    drop(publisher.publish(Outgoing::new(topic.as_str(), Message::new("1"))));
    drop(publisher);
    assert_eq!(number(&contents(&brokers, &topic, 1).await[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn all_four_codecs_are_readable() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    for (n, codec) in ["gzip", "snappy", "lz4", "zstd"].into_iter().enumerate() {
        let publisher =
            KafkaPublisher::builder(&brokers).property("compression.type", codec).build().unwrap();
        // Long enough that compressing is worth it: the driver sends what grows as it is.
        let message = Message::builder().payload(vec![b'a' + n as u8; 10_000]).header("codec", codec).build();
        publisher.publish(Outgoing::new(topic.as_str(), message)).await.unwrap();
    }
    let got = contents(&brokers, &topic, 4).await;
    for (n, message) in got.iter().enumerate() {
        assert_eq!(message.payload().len(), 10_000);
        assert!(message.payload().iter().all(|byte| *byte == b'a' + n as u8));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn one_key_goes_to_the_partition_the_java_client_takes() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 4).await;
    let keys = ["21", "o-17", "abc"];
    for key in keys {
        let message = Message::builder().payload("x").key(key).build();
        publisher(&brokers).publish(Outgoing::new(topic.as_str(), message)).await.unwrap();
    }
    for message in contents(&brokers, &topic, keys.len()).await {
        let partition = (murmur2(message.key().unwrap()) & 0x7fff_ffff) % 4;
        assert_eq!(place(&message).0, partition);
    }
}

/// As `org.apache.kafka.common.utils.Utils.murmur2` is written.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_unreachable_broker_is_told_within_the_delivery_timeout() {
    let port = xtask::servers::free_port().unwrap();
    let brokers = format!("127.0.0.1:{port}");
    let publisher =
        KafkaPublisher::builder(&brokers).property("delivery.timeout.ms", "1000").build().unwrap();
    let sent = publisher.publish(Outgoing::new("t", Message::new("x")));
    let error = timeout(LIMIT, sent).await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&brokers), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_restart_of_the_broker_is_waited_out() {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 1).await;
    let publisher = publisher(&brokers);
    produce(&publisher, &topic, 0..10).await;
    kafka.kill();
    let sent: Vec<_> = (10..20)
        .map(|n: u32| publisher.publish(Outgoing::new(topic.as_str(), Message::new(n.to_string()))))
        .collect();
    kafka.start_again().unwrap();
    for answer in sent {
        timeout(LIMIT, answer).await.unwrap().unwrap();
    }
    assert!(
        contents(&brokers, &topic, 20).await.iter().map(number).eq(0..20),
        "idempotence keeps order and number"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn topics_are_created_once_and_compared() {
    let brokers = shared_kafka();
    let admin = KafkaAdmin::new(&brokers).unwrap();
    let (source, dead, small) = (unique("s"), unique("d"), unique("d"));
    let room = (4_194_304 + 16_384).to_string();
    assert!(admin.ensure_topic(&source, 3, &[("max.message.bytes", "4194304")]).await.unwrap());
    assert!(!admin.ensure_topic(&source, 5, &[]).await.unwrap());
    assert_eq!(admin.partitions(&source).await.unwrap(), Some(3));
    assert!(admin.ensure_topic(&dead, 3, &[("max.message.bytes", &room)]).await.unwrap());
    assert!(admin.ensure_topic(&small, 3, &[("max.message.bytes", "4194304")]).await.unwrap());
    assert_eq!(admin.max_message_bytes(&source).await.unwrap(), 4_194_304);
    assert!(admin.check_dead_letter_topic(&source, &dead).await.unwrap());
    assert!(!admin.check_dead_letter_topic(&source, &small).await.unwrap());
    assert!(admin.max_message_bytes(&unique("missing")).await.unwrap_err().is_missing_topic());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm13_aborted_transactions_leave_gaps_that_are_no_hindrance() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let (before, group) = (publisher(&brokers), unique("g"));
    produce(&before, &topic, 0..2).await;
    aborted_transaction(&brokers, &topic);
    produce(&before, &topic, 2..4).await;
    let mut first = Member::new(member(&brokers, &topic, &group));
    let got = first.receive(4).await;
    assert_eq!(got.iter().map(|d| number(&d.message)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(place(&got[2].message).1 > 2, "there is a gap");
    first.ack(&got);
    first.flush().await.unwrap();
    // The end of the log is known with the driver's next statistics; the marker at the end is no message to wait for.
    let caught_up = async {
        while first.source.lag() != Some(0) {
            first.receive_for(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, caught_up).await.expect("nothing is behind");
    first.close().await.unwrap();
    assert!(left(&brokers, &topic, &group).await.is_empty());
}

fn aborted_transaction(brokers: &str, topic: &str) {
    use rdkafka::{
        ClientConfig,
        producer::{BaseProducer, BaseRecord, Producer},
    };
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", unique("tx"))
        .create()
        .unwrap();
    producer.init_transactions(LIMIT).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<str, str>::to(topic).payload("99")).unwrap();
    producer.flush(LIMIT).unwrap();
    producer.abort_transaction(LIMIT).unwrap();
}

#[tokio::test]
async fn a_message_for_later_is_refused_and_not_delivered_at_once() {
    let publisher = publisher("127.0.0.1:1");
    let message = || Outgoing::new("t", Message::builder().payload("x").build());
    let later = message().not_before(std::time::SystemTime::now() + Duration::from_secs(60));
    for outgoing in [later, message().delay(Duration::from_secs(60))] {
        let error = publisher.publish(outgoing).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("until later"), "{error}");
    }
}
