//! RabbitMQ for consumer-core, on lapin.
#![allow(dead_code)] // until the source and the publisher are here

mod connection;
mod declare;
mod delivery;
mod error;
mod mismatch;
mod topology;
mod url;
mod window;

pub use self::delivery::AmqpDelivery;
pub use self::error::AmqpError;
pub use self::topology::{Argument, Exchange, ExchangeKind, Queue};
