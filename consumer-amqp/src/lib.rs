//! RabbitMQ for consumer-core, on lapin.
mod admin;
mod backoff;
mod connection;
mod declare;
mod delivery;
mod error;
mod mismatch;
mod publisher;
mod source;
mod topology;
mod url;
mod window;

pub use self::admin::AmqpAdmin;
pub use self::delivery::AmqpDelivery;
pub use self::error::AmqpError;
pub use self::publisher::{AmqpPublisher, AmqpPublisherBuilder};
pub use self::source::{AmqpSource, AmqpSourceBuilder};
pub use self::topology::{Argument, Exchange, ExchangeKind, Queue};
