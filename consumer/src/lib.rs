//! Idempotent consumers: services that consume messages and must not repeat an effect when a message comes again.
//!
//! A handler is an async fn or any `tower::Service<Message>`. Layers around it deduplicate, retry, set aside and smooth;
//! a [`Consumer`] drives the stack from a source and acknowledges what the stack has dealt with. Nothing else does.
//!
//! # Five minutes
//! The broker and the store in memory need no server, and behave as the real ones do; a service's tests can run on them.
//!
//! ```
//! use std::time::Duration;
//!
//! use consumer::{
//!     Consumer, DeadLetterLayer, DedupLayer, Failure, Message, Outgoing, Publisher, RetryLayer, TimeoutLayer,
//!     handler::{Json, handler},
//!     memory::{MemoryBroker, MemoryStore},
//! };
//! use serde::Deserialize;
//! use tower::ServiceBuilder;
//!
//! #[derive(Deserialize)]
//! struct OrderPlaced {
//!     order_id: String,
//! }
//!
//! async fn confirm(Json(order): Json<OrderPlaced>) -> Result<(), Failure> {
//!     println!("order {} is confirmed", order.order_id);
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders.placed", 4);
//! broker.create_topic("orders.placed.dead", 1);
//! for payload in [r#"{"order_id":"o-1"}"#, r#"{"order_id":"o-1"}"#, "not an order"] {
//!     // A publisher that was not sure sends again, under the same id.
//!     let order = Message::builder().payload(payload).id(if payload.starts_with('{') { "1" } else { "2" }).build();
//!     broker.publisher().publish(Outgoing::new("orders.placed", order)).await?;
//! }
//!
//! let stack = ServiceBuilder::new()
//!     .layer(DeadLetterLayer::new(broker.publisher(), "orders.placed.dead"))
//!     .layer(DedupLayer::new(MemoryStore::new(), "order-mails"))
//!     .layer(RetryLayer::exponential(Duration::from_secs(1)))
//!     .layer(TimeoutLayer::new(Duration::from_secs(10)))
//!     .service(handler(confirm));
//! let source = broker.source("order-mails", ["orders.placed"]).finite();
//! let report = Consumer::new(source, stack).run().await?;
//! assert_eq!((report.processed, report.duplicates, report.dead_lettered), (1, 1, 1));
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//! - [`handler`]: async fns with extractors as services
//! - [`layers`], [`dedup`]: the layers, each a plain tower layer; [`Pipeline`] puts them in order and explains what the
//!   result guarantees
//! - [`runtime`]: [`Consumer`], its report and its health
//! - [`memory`]: the broker and the store in memory
//! - `kafka` (feature `kafka`), `amqp` (feature `amqp`: RabbitMQ), `redis` (feature `redis`), `sql` (features `postgres` and
//!   `sqlite`: inbox, outbox, relay, and a dedup store): the real ones

pub use consumer_core::*;

#[cfg(feature = "amqp")]
pub use consumer_amqp as amqp;
#[cfg(feature = "kafka")]
pub use consumer_kafka as kafka;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use consumer_sql as sql;
#[cfg(feature = "redis")]
pub use dedup_redis as redis;

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "kafka", feature = "redis"))]
#[doc = include_str!("../../README.md")]
struct Readme;
