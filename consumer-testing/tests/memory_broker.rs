//! The in-memory broker behaves as sources and publishers have to.

use std::time::Duration;

use consumer_core::memory::{MemoryBroker, MemoryPublisher, MemorySource};
use consumer_testing::conformance::{BrokerUnderTest, publisher, source};

struct Memory(MemoryBroker);

impl BrokerUnderTest for Memory {
    type Source = MemorySource;
    type Publisher = MemoryPublisher;

    async fn create_topic(&self, partitions: u32) -> String {
        let name = consumer_testing::unique("topic");
        self.0.create_topic(&name, partitions as usize);
        name
    }

    async fn source(&self, group: &str, topic: &str) -> MemorySource {
        self.0.source(group, [topic])
    }

    async fn publisher(&self) -> MemoryPublisher {
        self.0.publisher()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test(start_paused = true)]
async fn source_conformance() {
    source::run_all(&Memory(MemoryBroker::new())).await;
}

#[tokio::test(start_paused = true)]
async fn publisher_conformance() {
    publisher::run_all(&Memory(MemoryBroker::new())).await;
}
