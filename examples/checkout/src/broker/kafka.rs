//! Kafka: a topic, which each group of consumers reads as a whole.

use async_trait::async_trait;
use consumer::{
    BoxError, BoxSource, DynPublisher,
    kafka::{KafkaAdmin, KafkaPublisher, KafkaSource, KafkaSourceBuilder},
};

use super::{Broker, DeadLetters};

const PARTITIONS: u32 = 4;

pub(super) struct Kafka {
    url: String,
}

impl Kafka {
    pub(super) fn new(url: &str) -> Result<Self, BoxError> {
        let kafka = Self { url: url.to_owned() };
        // Only for what is wrong with the URL.
        kafka.group("any").topic("any").build()?;
        Ok(kafka)
    }

    fn group(&self, group: &str) -> KafkaSourceBuilder {
        let source = KafkaSource::from_url(&self.url).group(group);
        // A member that was killed holds its partitions for this long.
        if self.url.contains("session.timeout.ms=") {
            source
        } else {
            source.property("session.timeout.ms", "10000")
        }
    }
}

#[async_trait]
impl Broker for Kafka {
    async fn publisher(&self, queues: &[String]) -> Result<DynPublisher, BoxError> {
        let admin = KafkaAdmin::from_url(&self.url)?;
        for topic in queues {
            admin.ensure_topic(topic, PARTITIONS, &[]).await?;
        }
        Ok(DynPublisher::new(KafkaPublisher::from_url(&self.url).build()?))
    }

    async fn source(&self, queue: &str, group: &str) -> Result<(BoxSource, DeadLetters), BoxError> {
        let target = format!("{queue}.{group}.dead");
        let publisher = self.publisher(&[queue.to_owned(), target.clone()]).await?;
        let source = self.group(group).topic(queue).build()?;
        Ok((Box::new(source), DeadLetters { publisher, target }))
    }
}
