//! Kafka: the topic is a log that is stored once, and each service reads it as a consumer group with offsets of its own.

use async_trait::async_trait;
use consumer::{
    BoxError, BoxSource, DynPublisher,
    kafka::{KafkaAdmin, KafkaPublisher, KafkaSource, KafkaSourceBuilder},
};

use crate::broker::{Broker, dead, subscription};

pub(crate) struct Kafka {
    url: String,
    topic: String,
}

impl Kafka {
    pub(crate) fn new(url: &str, topic: &str) -> Result<Self, BoxError> {
        let kafka = Self { url: url.to_owned(), topic: topic.to_owned() };
        // Only for what is wrong with the names: nothing connects before it is used.
        kafka.group("any").build()?;
        Ok(kafka)
    }

    fn group(&self, service: &str) -> KafkaSourceBuilder {
        KafkaSource::from_url(&self.url).group(subscription(&self.topic, service)).topic(&*self.topic)
    }
}

#[async_trait]
impl Broker for Kafka {
    async fn prepare(&self, services: &[&str]) -> Result<(), BoxError> {
        let admin = KafkaAdmin::from_url(&self.url)?;
        admin.ensure_topic(&self.topic, 4, &[]).await?;
        for service in services {
            admin.ensure_topic(&dead(&self.topic, service), 1, &[]).await?;
        }
        Ok(())
    }

    fn subscribe(&self, service: &str) -> Result<BoxSource, BoxError> {
        Ok(Box::new(self.group(service).build()?))
    }

    fn events(&self) -> Result<DynPublisher, BoxError> {
        Ok(DynPublisher::new(KafkaPublisher::from_url(&self.url).build()?))
    }

    fn dead_letters(&self) -> Result<DynPublisher, BoxError> {
        self.events()
    }

    /// With offsets and a dedup scope under the replay's name; the group's own offsets stay where they are.
    fn replay(&self, service: &str, name: &str) -> Result<Option<BoxSource>, BoxError> {
        Ok(Some(Box::new(self.group(service).replay(name).build()?)))
    }
}
