//! What the story needs of a broker, and which there are.

use async_trait::async_trait;
use consumer::{BoxError, BoxSource, DynPublisher};

use crate::memory::Memory;

/// A broker by which every event reaches every service.
#[async_trait]
pub(crate) trait Broker {
    /// Creates what is missing, so that each of these services gets what is published from now on.
    async fn prepare(&self, services: &[&str]) -> Result<(), BoxError>;

    /// What one service consumes.
    fn subscribe(&self, service: &str) -> Result<BoxSource, BoxError>;

    /// Publishes to all services.
    fn events(&self) -> Result<DynPublisher, BoxError>;

    /// Publishes to [`dead`] ones.
    fn dead_letters(&self) -> Result<DynPublisher, BoxError>;

    /// All events there are, once more for one service; `None` where the broker keeps no log.
    fn replay(&self, service: &str, name: &str) -> Result<Option<BoxSource>, BoxError>;
}

/// Names what a service has of a topic: its group, or its queue.
pub(crate) fn subscription(topic: &str, service: &str) -> String {
    format!("{topic}.{service}")
}

/// Where a service sets messages aside. Not the topic's: what is a dead letter to one service is none to another.
pub(crate) fn dead(topic: &str, service: &str) -> String {
    format!("{topic}.{service}.dead")
}

/// The only place that knows which there are. The error is about the command line.
pub(crate) fn by_url(url: &str, topic: &str) -> Result<Box<dyn Broker>, BoxError> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "memory" => Ok(Box::new(Memory::new(topic))),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => Ok(Box::new(crate::kafka::Kafka::new(url, topic)?)),
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafka+tls" => Err("this URL needs `cargo run -p fan-out --features kafka`".into()),
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => Ok(Box::new(crate::rabbitmq::RabbitMq::new(url, topic)?)),
        #[cfg(not(feature = "amqp"))]
        "amqp" | "amqps" => Err("this URL needs `cargo run -p fan-out --features amqp`".into()),
        // Not shown: a mistyped URL may begin with a password.
        _ => Err("the broker's URL begins with memory:, kafka:// or amqp://".into()),
    }
}
