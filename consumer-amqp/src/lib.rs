//! RabbitMQ for `consumer-core`: a source, a publisher and a small administration client, on lapin.
//!
//! - [`AmqpSource`] consumes a queue with a bounded prefetch. What is acked is told to the broker in few frames; a
//!   connection that is lost comes back by itself, and what was held comes again.
//! - [`AmqpPublisher`] publishes with confirms and `mandatory`, many messages at once; a publish is done when a queue has
//!   the message and the broker keeps it.
//! - [`AmqpAdmin`] creates queues and exchanges, compares them and looks at them.
//! - [`AmqpDeadLetters`] reads the dead letters of a queue, and gives back what is not settled.
//! - [`Queue`] and [`Exchange`] say what is wanted. Quorum queues are the default, each with a dead-letter queue, so that
//!   nothing the broker gives up is lost.
//!
//! Types of the driver are in no signature here. The feature `tls` (default) is TLS by rustls, for `amqps://`. The driver
//! logs through `tracing` as well, under `lapin`: what it calls an error is often only a queue that differs.
//!
//! Sources need RabbitMQ 3.10 or later, for quorum queues with an at-least-once dead-letter route.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use consumer_amqp::{AmqpSource, Exchange, Queue};
//!
//! // A work queue, shared by all who consume it.
//! let source = AmqpSource::builder("amqp://guest:guest@localhost:5672/%2f").queue("orders.placed").build()?;
//! let dead_letters = source.publisher()?; // same connection settings, another connection
//!
//! // A queue of one's own, which gets every message of an exchange.
//! let queue = Queue::quorum("inventory").bind(Exchange::fanout("orders"), "");
//! let source = AmqpSource::builder("amqp://guest:guest@localhost:5672/%2f").queue(queue).build()?;
//! # Ok(()) }
//! ```

mod admin;
mod backoff;
mod connection;
mod dead_letters;
mod declare;
mod delivery;
mod error;
#[cfg(test)]
mod fuzz;
mod mismatch;
mod publisher;
mod source;
mod topology;
mod url;
mod window;

pub use self::admin::AmqpAdmin;
pub use self::dead_letters::AmqpDeadLetters;
pub use self::delivery::AmqpDelivery;
pub use self::error::AmqpError;
pub use self::publisher::{AmqpPublisher, AmqpPublisherBuilder};
pub use self::source::{AmqpSource, AmqpSourceBuilder};
pub use self::topology::{Argument, Exchange, ExchangeKind, Queue};
