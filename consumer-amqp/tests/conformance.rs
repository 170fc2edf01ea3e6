//! The rules for every source and every publisher, on RabbitMQ with both types of queue.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::{admin, unique};
use consumer_amqp::{AmqpPublisher, AmqpSource, Exchange, Queue};
use consumer_testing::{
    conformance::{self, BrokerUnderTest, Capabilities},
    proxy::Proxy,
};
use xtask::servers::shared_rabbitmq;

const CAPABILITIES: Capabilities = Capabilities {
    rebalance: false,
    tombstones: false,
    all_headers: false,
    delayed: false,
    ..Capabilities::ALL
};

/// A topic is a routing key of one direct exchange, a group is a queue bound with it.
struct RabbitMq {
    proxy: Proxy,
    url: String,
    exchange: String,
    quorum: bool,
}

impl RabbitMq {
    async fn with(quorum: bool) -> Self {
        let (proxy, url) = common::by_proxy(&shared_rabbitmq()).await;
        let exchange = unique("topics");
        admin(&url).ensure_exchange(Exchange::direct(&exchange)).await.unwrap();
        Self { proxy, url, exchange, quorum }
    }

    fn queue(&self, group: &str, topic: &str) -> Queue {
        let name = self.origin_name(group, topic);
        let queue = if self.quorum { Queue::quorum(name) } else { Queue::classic(name) };
        queue.bind(Exchange::direct(&self.exchange), topic)
    }
}

impl BrokerUnderTest for RabbitMq {
    type Source = AmqpSource;
    type Publisher = AmqpPublisher;

    async fn create_topic(&self, _: u32) -> String {
        unique("topic")
    }

    async fn create_group(&self, group: &str, topic: &str) {
        admin(&self.url).ensure_queue(self.queue(group, topic)).await.unwrap();
    }

    async fn source(&self, group: &str, topic: &str) -> AmqpSource {
        AmqpSource::builder(&self.url).queue(self.queue(group, topic)).build().unwrap()
    }

    async fn publisher(&self) -> AmqpPublisher {
        AmqpPublisher::builder(&self.url).exchange(&self.exchange).build().unwrap()
    }

    async fn cut(&self) {
        self.proxy.cut().await;
    }

    fn origin_name(&self, group: &str, topic: &str) -> String {
        format!("{topic}.{group}")
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_source_conforms_with_quorum_queues() {
    conformance::source::run_all(&RabbitMq::with(true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_source_conforms_with_classic_queues() {
    conformance::source::run_all(&RabbitMq::with(false).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_publisher_conforms() {
    conformance::publisher::run_all(&RabbitMq::with(true).await).await;
}

#[test]
fn the_document_says_what_rabbitmq_can_do() {
    conformance::check_column(include_str!("../../docs/conformance.md"), "RabbitMQ", CAPABILITIES);
}
