//! The broker by URL. The rest of the program knows the trait and nothing else.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "amqp")]
mod rabbitmq;

use async_trait::async_trait;
use consumer::{BoxError, BoxSource, DynPublisher};

/// Where events go and come from. Nothing connects before it is used.
#[async_trait]
pub(crate) trait Broker: Send + Sync {
    /// A publisher to these queues, which are created where they are missing.
    async fn publisher(&self, queues: &[String]) -> Result<DynPublisher, BoxError>;

    /// The events of a queue for a group of consumers, and where those go that it cannot work on.
    async fn source(&self, queue: &str, group: &str) -> Result<(BoxSource, DeadLetters), BoxError>;
}

#[derive(Debug)]
pub(crate) struct DeadLetters {
    pub(crate) publisher: DynPublisher,
    pub(crate) target: String,
}

/// `None` is this process: `memory:`.
///
/// # Errors
/// What is wrong with the URL, without showing it.
pub(crate) fn by_url(url: &str) -> Result<Option<Box<dyn Broker>>, BoxError> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "memory" => Ok(None),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => Ok(Some(Box::new(kafka::Kafka::new(url)?))),
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => Ok(Some(Box::new(rabbitmq::RabbitMq::new(url)?))),
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafka+tls" => Err(missing("kafka")),
        #[cfg(not(feature = "amqp"))]
        "amqp" | "amqps" => Err(missing("amqp")),
        // Not shown: a mistyped URL may begin with a password.
        _ => Err("the broker's URL begins with memory:, kafka:// or amqp://".into()),
    }
}

#[cfg(not(all(feature = "kafka", feature = "amqp")))]
fn missing(feature: &str) -> BoxError {
    format!("this URL needs `cargo run -p checkout --features {feature}`").into()
}
