//! The rules for every source and every publisher, on Kafka with both group protocols.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::{publisher, topic};
use consumer_kafka::{GroupProtocol, KafkaPublisher, KafkaSource};
use consumer_testing::conformance::{self, BrokerUnderTest, Capabilities};
use xtask::servers::shared_kafka;

/// A member keeps what it holds over a lost connection: `cut` is about brokers that take it away.
const CAPABILITIES: Capabilities = Capabilities { cut: false, delayed: false, ..Capabilities::ALL };

struct Kafka {
    brokers: String,
    protocol: GroupProtocol,
}

impl BrokerUnderTest for Kafka {
    type Source = KafkaSource;
    type Publisher = KafkaPublisher;

    async fn create_topic(&self, partitions: u32) -> String {
        topic(&self.brokers, partitions).await
    }

    async fn source(&self, group: &str, topic: &str) -> KafkaSource {
        KafkaSource::builder(&self.brokers)
            .group(group)
            .topic(topic)
            .group_protocol(self.protocol)
            .build()
            .unwrap()
    }

    async fn publisher(&self) -> KafkaPublisher {
        publisher(&self.brokers)
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn kafka(protocol: GroupProtocol) -> Kafka {
    Kafka { brokers: shared_kafka(), protocol }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_source_conforms_with_the_classic_protocol() {
    conformance::source::run_all(&kafka(GroupProtocol::Classic)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_source_conforms_with_the_consumer_protocol() {
    conformance::source::run_all(&kafka(GroupProtocol::Consumer)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_publisher_conforms() {
    conformance::publisher::run_all(&kafka(GroupProtocol::Classic)).await;
}

#[test]
fn the_document_says_what_kafka_can_do() {
    conformance::check_column(include_str!("../../docs/conformance.md"), "Kafka", CAPABILITIES);
}
