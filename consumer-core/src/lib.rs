//! Messages, layers, deduplication protocol and runtime of an idempotent-consumer framework.
//!
//! This crate knows no broker and no store. The crate `consumer` is what users depend on.

mod closure;
pub mod dead_letters;
pub mod dedup;
mod failure;
#[cfg(test)]
mod fuzz;
pub mod handler;
pub mod layers;
#[cfg(test)]
mod logged;
pub mod memory;
pub mod message;
pub mod pipeline;
mod plain;
mod publisher;
pub mod runtime;
mod scope;
mod source;
mod sync;
mod time;

pub use dedup::{DedupLayer, DedupStore, IdempotencyKey};
pub use failure::{Failure, FailureError, FailureKind, Outcome, ResultExt};
#[cfg(feature = "metrics")]
pub use layers::MetricsLayer;
#[cfg(feature = "rate-limit")]
pub use layers::RateLimitLayer;
pub use layers::{CatchPanicLayer, DeadLetterLayer, DelayedRetryLayer, RetryLayer, TimeoutLayer, TraceLayer};
pub use message::{Defect, HeaderName, Headers, Message, MessageBuilder, Origin};
pub use pipeline::Pipeline;
pub use publisher::{DynPublisher, Outgoing, PublishError, Publisher};
pub use runtime::{Consumer, Report};
pub use source::{BoxSource, Delivery, Demand, Event, Settlement, Source, SourceError, Tag};
pub use time::WallClock;

/// Any error, boxed: what tower layers pass on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
