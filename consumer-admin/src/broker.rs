//! Brokers by URL.

use std::fmt;

use consumer_core::{BoxError, DynPublisher, dead_letters::DeadLetters};

use crate::AdminError;

/// A broker, reached as the consumers reach it.
#[derive(Clone)]
pub struct Broker {
    url: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kafka,
    Amqp,
}

impl Broker {
    /// `kafka://host:port[,host:port]`, `kafka+tls://user:password@host:port?sasl.mechanism=…`,
    /// `amqp://user:password@host:port/%2f` or `amqps://…`.
    ///
    /// # Errors
    /// With `is_usage()` when the URL is of no known kind. No error repeats the URL.
    pub fn from_url(url: impl Into<String>) -> Result<Self, AdminError> {
        let url = url.into();
        let kind = match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("kafka" | "kafka+tls") => Kind::Kafka,
            Some("amqp" | "amqps") => Kind::Amqp,
            _ => {
                return Err(AdminError::usage(
                    "this is no URL of a broker: known are kafka://, kafka+tls://, amqp:// and amqps://",
                ));
            }
        };
        Ok(Self { url, kind })
    }

    /// The kind, as dead letters name it: `kafka` or `amqp`.
    pub fn system(&self) -> &'static str {
        match self.kind {
            Kind::Kafka => "kafka",
            Kind::Amqp => "amqp",
        }
    }

    /// The dead letters in a topic or queue. Connects when they are opened.
    ///
    /// # Errors
    /// With `is_usage()` when the URL is wrong.
    pub fn dead_letters(&self, name: &str) -> Result<Box<dyn DeadLetters>, AdminError> {
        match self.kind {
            Kind::Kafka => {
                let admin = consumer_kafka::KafkaAdmin::from_url(&self.url).map_err(config)?;
                Ok(Box::new(admin.dead_letters(name)))
            }
            Kind::Amqp => {
                let admin = consumer_amqp::AmqpAdmin::new(&self.url).map_err(config)?;
                Ok(Box::new(admin.dead_letters(name)))
            }
        }
    }

    /// Whether there is such a topic or queue.
    ///
    /// # Errors
    /// When the broker is not reached or refuses. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn exists(&self, name: &str) -> Result<bool, AdminError> {
        let cannot =
            |error: BoxError| AdminError::new(format!("`{name}` cannot be looked for")).with_source(error);
        match self.kind {
            Kind::Kafka => {
                let admin = consumer_kafka::KafkaAdmin::from_url(&self.url).map_err(config)?;
                admin
                    .partitions(name)
                    .await
                    .map(|found| found.is_some())
                    .map_err(|error| cannot(error.into()))
            }
            Kind::Amqp => {
                let admin = consumer_amqp::AmqpAdmin::new(&self.url).map_err(config)?;
                admin.depth(name).await.map(|found| found.is_some()).map_err(|error| cannot(error.into()))
            }
        }
    }

    /// A publisher to every topic or queue. It connects in the background; needs a tokio runtime.
    ///
    /// # Errors
    /// With `is_usage()` when the URL is wrong.
    pub fn publisher(&self) -> Result<DynPublisher, AdminError> {
        match self.kind {
            Kind::Kafka => {
                let publisher = consumer_kafka::KafkaPublisher::from_url(&self.url).build();
                publisher.map(DynPublisher::new).map_err(config)
            }
            Kind::Amqp => {
                let publisher = consumer_amqp::AmqpPublisher::builder(&self.url).build();
                publisher.map(DynPublisher::new).map_err(config)
            }
        }
    }
}

fn config(error: impl std::error::Error + Send + Sync + 'static) -> AdminError {
    AdminError::usage("the broker's URL cannot be used").with_source(error)
}

/// A URL may hold a password.
impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("kind", &self.kind).finish_non_exhaustive()
    }
}
