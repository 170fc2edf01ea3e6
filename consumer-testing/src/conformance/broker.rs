//! What the suites of sources and publishers need of a broker.

use std::{future::Future, time::Duration};

use consumer_core::{Message, Outgoing, Publisher, Source};

use crate::drive::Driven;

/// A broker to be tested, with its source and its publisher.
pub trait BrokerUnderTest: Sync {
    /// Its source.
    type Source: Source;
    /// Its publisher.
    type Publisher: Publisher;

    /// Creates a topic or queue with a name that was not used before, and answers with that. `partitions` is for
    /// brokers that have them.
    fn create_topic(&self, partitions: u32) -> impl Future<Output = String> + Send;

    /// A new consumer of the topic as a member of `group`, which starts with the earliest message.
    fn source(&self, group: &str, topic: &str) -> impl Future<Output = Self::Source> + Send;

    /// A publisher to all topics.
    fn publisher(&self) -> impl Future<Output = Self::Publisher> + Send;

    /// What the broker can do; everything by default.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// The longest that anything may take, a rebalance after a crash included; 30 s by default.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// What a broker can do; rules about the rest are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Messages of one key or partition come in their order, also when they come again.
    pub order: bool,
    /// Every group gets every message.
    pub groups: bool,
    /// A member that joins takes partitions over from others.
    pub rebalance: bool,
    /// A source that is dropped without being closed has crashed, and what it held is delivered again in time.
    pub crash: bool,
    /// A nacked message is delivered again while the source stays open.
    pub nack: bool,
    /// A null payload is not an empty one.
    pub tombstones: bool,
    /// Headers keep null values, binary values, repetition and order.
    pub all_headers: bool,
    /// Publishing to a topic that does not exist is an error.
    pub unroutable: bool,
    /// `not_before` delays delivery.
    pub delayed: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            order: true,
            groups: true,
            rebalance: true,
            crash: true,
            nack: true,
            tombstones: true,
            all_headers: true,
            unroutable: true,
            delayed: true,
        }
    }
}

/// One rule at work on one topic.
pub(super) struct Case<'a, T: BrokerUnderTest> {
    pub(super) subject: &'a T,
    pub(super) rule: &'static str,
    pub(super) topic: String,
    pub(super) publisher: T::Publisher,
}

impl<'a, T: BrokerUnderTest> Case<'a, T> {
    pub(super) async fn new(subject: &'a T, rule: &'static str, partitions: u32) -> Self {
        let topic = subject.create_topic(partitions).await;
        Self { subject, rule, topic, publisher: subject.publisher().await }
    }

    pub(super) async fn member(&self, group: &str) -> Driven<T::Source> {
        Driven::new(self.subject.source(group, &self.topic).await, self.subject.patience())
    }

    pub(super) async fn publish(&self, message: Message) {
        self.send(Outgoing::new(self.topic.as_str(), message)).await;
    }

    pub(super) async fn send(&self, outgoing: Outgoing) {
        let published = tokio::time::timeout(self.subject.patience(), self.publisher.publish(outgoing)).await;
        let published = published.unwrap_or_else(|_| panic!("{}: publishing took too long", self.rule));
        published.unwrap_or_else(|error| panic!("{}: publishing failed: {error:?}", self.rule));
    }

    /// Publishes `range` as payloads, one after the other, under one key.
    pub(super) async fn publish_numbers(&self, range: std::ops::Range<u32>) {
        for n in range {
            self.publish(Message::builder().payload(n.to_string()).key("key").build()).await;
        }
    }
}

/// The numbers that were published as payloads.
pub(super) fn numbers<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Vec<u32> {
    let number = |payload: &[u8]| std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
    payloads.into_iter().map(|payload| number(payload).expect("a number was published")).collect()
}
