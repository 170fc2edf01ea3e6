//! The in-memory broker behaves as sources and publishers have to.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use consumer_core::memory::{CrashHandle, MemoryBroker, MemoryPublisher, MemorySource};
use consumer_testing::conformance::{self, BrokerUnderTest, publisher, source};

#[derive(Default)]
struct Memory {
    broker: MemoryBroker,
    sources: Mutex<Vec<CrashHandle>>,
}

impl BrokerUnderTest for Memory {
    type Source = MemorySource;
    type Publisher = MemoryPublisher;

    async fn create_topic(&self, partitions: u32) -> String {
        let name = consumer_testing::unique("topic");
        self.broker.create_topic(&name, partitions as usize);
        name
    }

    async fn source(&self, group: &str, topic: &str) -> MemorySource {
        let source = self.broker.source(group, [topic]);
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source.crash_handle());
        source
    }

    async fn publisher(&self) -> MemoryPublisher {
        self.broker.publisher()
    }

    async fn cut(&self) {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().for_each(CrashHandle::lose_connection);
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test(start_paused = true)]
async fn source_conformance() {
    let report = source::run_all(&Memory::default()).await;
    assert_eq!(report.held, source::RULES);
}

#[tokio::test(start_paused = true)]
async fn publisher_conformance() {
    let report = publisher::run_all(&Memory::default()).await;
    assert_eq!(report.held, publisher::RULES);
}

#[test]
fn the_document_says_what_the_memory_broker_can_do() {
    let document = include_str!("../../docs/conformance.md");
    conformance::check_column(document, "Memory", Memory::default().capabilities());
    for rule in source::RULES.iter().chain(publisher::RULES) {
        let row = format!("| `{}` | {} |", rule.name, rule.what);
        assert!(document.contains(&row), "docs/conformance.md has no line {row}");
    }
}
