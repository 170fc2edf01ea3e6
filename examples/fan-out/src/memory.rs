//! In memory: as on Kafka, one log and a group for each service.

use async_trait::async_trait;
use consumer::{BoxError, BoxSource, DynPublisher, memory::MemoryBroker};

use crate::broker::{Broker, dead, subscription};

pub(crate) struct Memory {
    broker: MemoryBroker,
    topic: String,
}

impl Memory {
    pub(crate) fn new(topic: &str) -> Self {
        Self { broker: MemoryBroker::new(), topic: topic.to_owned() }
    }
}

#[async_trait]
impl Broker for Memory {
    async fn prepare(&self, services: &[&str]) -> Result<(), BoxError> {
        self.broker.create_topic(&self.topic, 4);
        for service in services {
            self.broker.create_topic(&dead(&self.topic, service), 1);
        }
        Ok(())
    }

    fn subscribe(&self, service: &str) -> Result<BoxSource, BoxError> {
        Ok(Box::new(self.broker.source(&subscription(&self.topic, service), [&self.topic])))
    }

    fn events(&self) -> Result<DynPublisher, BoxError> {
        Ok(DynPublisher::new(self.broker.publisher()))
    }

    fn dead_letters(&self) -> Result<DynPublisher, BoxError> {
        self.events()
    }

    /// A group that has read nothing yet begins at the first event.
    fn replay(&self, service: &str, name: &str) -> Result<Option<BoxSource>, BoxError> {
        let group = format!("{}@{name}", subscription(&self.topic, service));
        Ok(Some(Box::new(self.broker.source(&group, [&self.topic]))))
    }
}
