//! What the suites of sources and publishers need of a broker, and what their rules have in common.

use std::{future::Future, ops::Range, time::Duration};

use consumer_core::{Delivery, Message, Outgoing, PublishError, Publisher, Source};
use tokio::time::timeout;

use super::Capabilities;
use crate::{drive::Driven, unique};

/// A broker to be tested, with its source and its publisher.
pub trait BrokerUnderTest: Sync {
    /// Its source.
    type Source: Source;
    /// Its publisher.
    type Publisher: Publisher;

    /// Creates a topic with a name that was not used before, and answers with that. On a broker with queues it is an
    /// exchange that gives every message to every queue bound to it. `partitions` is for brokers that have them.
    fn create_topic(&self, partitions: u32) -> impl Future<Output = String> + Send;

    /// Makes `group` get everything that is published to the topic from now on. Every group is created, by this, before
    /// anything is published for it; nothing is to be done where a group starts with the earliest message. On a broker with
    /// queues, a group is a queue that is bound to the topic.
    fn create_group(&self, group: &str, topic: &str) -> impl Future<Output = ()> + Send {
        let _ = (group, topic);
        async {}
    }

    /// A new consumer of the topic as a member of `group`, which goes on where the group stopped and starts with the
    /// earliest message.
    fn source(&self, group: &str, topic: &str) -> impl Future<Output = Self::Source> + Send;

    /// A publisher to all topics.
    fn publisher(&self) -> impl Future<Output = Self::Publisher> + Send;

    /// Cuts the connection of every source and publisher made so far, and answers when it is cut. They come back by
    /// themselves. Called only where there is the capability `cut`.
    fn cut(&self) -> impl Future<Output = ()> + Send {
        async { panic!("a broker with the capability `cut` has to say how connections are cut") }
    }

    /// What [`Origin::name`](consumer_core::Origin::name) is for messages of this group: the topic by default, on a broker
    /// with queues the name of the queue.
    fn origin_name(&self, group: &str, topic: &str) -> String {
        let _ = group;
        topic.to_owned()
    }

    /// What the broker can do; everything by default.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// The longest that anything may take, a rebalance after a crash included; 30 s by default.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
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

    /// A new group, which gets what is published from now on.
    pub(super) async fn group(&self) -> String {
        let group = unique("group");
        self.subject.create_group(&group, &self.topic).await;
        group
    }

    pub(super) async fn member(&self, group: &str) -> Driven<T::Source> {
        Driven::new(self.subject.source(group, &self.topic).await, self.subject.patience())
    }

    pub(super) async fn publish(&self, message: Message) {
        self.send(self.to(message)).await;
    }

    pub(super) fn to(&self, message: Message) -> Outgoing {
        Outgoing::new(self.topic.as_str(), message)
    }

    pub(super) async fn send(&self, outgoing: Outgoing) {
        let published = self.answer(self.publisher.publish(outgoing)).await;
        published.unwrap_or_else(|error| panic!("{}: publishing failed: {error:?}", self.rule));
    }

    /// What is answered in time.
    pub(super) async fn answer(
        &self,
        publish: impl Future<Output = Result<(), PublishError>>,
    ) -> Result<(), PublishError> {
        let answer = timeout(self.subject.patience(), publish).await;
        answer.unwrap_or_else(|_| panic!("{}: publishing took too long", self.rule))
    }

    /// Publishes `range` as payloads, one after the other, under one key.
    pub(super) async fn publish_numbers(&self, range: Range<u32>) {
        for n in range {
            self.publish(Message::builder().payload(n.to_string()).key("key").build()).await;
        }
    }

    /// Publishes `range` as payloads, each its own key.
    pub(super) async fn publish_keys(&self, range: Range<u32>) {
        for n in range {
            self.publish(Message::builder().payload(n.to_string()).key(n.to_string()).build()).await;
        }
    }

    /// Everything in the group is acked: a marker that is published now is the first that the next member gets. For
    /// topics with one partition.
    pub(super) async fn nothing_is_left(&self, group: &str, marker: u32) {
        // The publisher of a rule that cuts connections may still be on its way back.
        let publisher = self.subject.publisher().await;
        let outgoing = self.to(Message::builder().payload(marker.to_string()).key("key").build());
        let published = self.answer(publisher.publish(outgoing)).await;
        published.unwrap_or_else(|error| panic!("{}: publishing failed: {error:?}", self.rule));
        let mut next = self.member(group).await;
        let taken = next.take(1, self.rule).await;
        assert_eq!(numbers(&taken), [marker], "{}: something was left that was done with", self.rule);
        next.ack(&taken);
        next.close().await;
    }
}

/// The numbers that these deliveries bring.
pub(super) fn numbers<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<u32> {
    deliveries.into_iter().map(|delivery| number(delivery.message.payload())).collect()
}

/// The same in ascending order.
pub(super) fn sorted<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<u32> {
    let mut sorted = numbers(deliveries);
    sorted.sort_unstable();
    sorted
}

/// Everything that members have ever got, in ascending order and each once.
pub(super) fn distinct<S>(members: &[&mut Driven<S>]) -> Vec<u32> {
    let mut all: Vec<_> = members.iter().flat_map(|member| &member.payloads).map(|p| number(p)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn number(payload: &[u8]) -> u32 {
    let number = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
    number.expect("a number was published")
}
