//! Kafka for `consumer-core`: a source, a publisher and a small administration client, on librdkafka.
//!
//! - [`KafkaSource`] consumes topics as a member of a group. An offset is committed when everything delivered below it
//!   was acked; what was not is delivered again.
//! - [`KafkaPublisher`] publishes with `acks=all` and idempotence; a publish is done when the broker has confirmed it.
//! - [`KafkaAdmin`] creates topics and looks at them.
//!
//! Types of the driver are in no signature here. The feature `tls` (default) is TLS and SASL/SCRAM through the system's
//! OpenSSL; what else librdkafka can be built with (`ssl-vendored`, `gssapi`, …) is switched on by depending on `rdkafka`
//! beside this crate.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use consumer_kafka::{KafkaSource, StartPosition};
//!
//! let source = KafkaSource::builder("localhost:9092")
//!     .group("order-mails")
//!     .topic("orders.placed")
//!     .start(StartPosition::Earliest)
//!     .build()?;
//! let dead_letters = source.publisher()?; // the same connection settings
//! # Ok(()) }
//! ```

mod admin;
mod assignment;
mod builder;
mod certificate;
mod codes;
mod commit;
mod config;
mod convert;
mod dead_letters;
mod error;
#[cfg(test)]
mod fuzz;
mod group;
mod intake;
mod partition;
mod publisher;
mod rebalance;
mod retry;
mod shared;
mod source;
mod start;
mod sync;
mod thread;
mod tracker;
mod trouble;
mod url;

pub use admin::KafkaAdmin;
pub use builder::{GroupProtocol, KafkaSourceBuilder, StartPosition};
pub use dead_letters::KafkaDeadLetters;
pub use error::KafkaError;
pub use publisher::{KafkaPublisher, KafkaPublisherBuilder};
pub use source::KafkaSource;
