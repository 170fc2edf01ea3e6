//! A tracing span for each delivery and an event for its outcome.
//!
//! # What it records
//! The span `message` (target `consumer`) has these fields; what is empty is left out:
//!
//! | field | |
//! |---|---|
//! | `message_id`, `key` | the message id and key, as text |
//! | `origin` | topic, partition and offset, or the queue |
//! | `attempt` | the attempt with which the message arrived |
//! | `epoch` | the epoch of its claim, where the layer is inside a dedup layer or one outside records it |
//! | `traceparent` | the W3C trace context the message carries, for a subscriber that continues traces |
//! | `outcome` | `processed`, `duplicate`, `dead_lettered`, `deferred`, `failed`, `returned`, or `dropped` for a delivery whose future was dropped |
//!
//! The event at the end has `outcome` and the elapsed time in milliseconds; of a failure also its error chain and the
//! number of failed calls. Everything that is logged inside belongs to the span.
//!
//! Payloads and header values are never recorded, `traceparent` excepted. Error chains are: an error that quotes its
//! input shows it here.
//!
//! # Cost
//! With the span disabled by the subscriber's filter, a few nanoseconds for each delivery, and no event unless its own
//! level is enabled.
//!
//! # Defaults
//! Span `INFO`; event of a success `DEBUG`, of a failure `WARN`, of a message handed back `DEBUG`.
//!
//! # Example
//! ```
//! use consumer_core::{Failure, Message, TraceLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tracing::Level;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! let stack = ServiceBuilder::new()
//!     .layer(TraceLayer::new().on_success(Level::INFO))
//!     .service(service_fn(|_: Message| async { Ok::<(), Failure>(()) }));
//! stack.oneshot(Message::builder().id("4711").build()).await?;
//! # Ok(())
//! # }
//! ```

mod layer;
mod service;
#[cfg(test)]
mod tests;

pub use layer::TraceLayer;
pub use service::{Trace, TraceFuture};
