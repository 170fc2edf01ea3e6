//! The layers of a stack, each a plain tower layer that works alone with `ServiceBuilder`.
//!
//! Every layer takes any inner error and gives [`Failure`]. There are two kinds:
//!
//! - *Pass-through* layers ([`TimeoutLayer`], [`CatchPanicLayer`], [`TraceLayer`], [`MetricsLayer`]) forward
//!   readiness to what is inside them.
//! - *Waiting* layers ([`RetryLayer`], [`RateLimitLayer`], [`DedupLayer`](crate::DedupLayer)) do not poll what is
//!   inside them for readiness. They clone it, make it ready and call it within their own future; otherwise a message
//!   that waits for its backoff would hold the permits taken inside it. So what is inside them must be `Clone`.

pub(crate) mod after;
pub mod catch_panic;
pub mod dead_letter;
pub mod delayed_retry;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
pub mod retry;
pub(crate) mod target;
pub mod timeout;
pub mod trace;

pub use catch_panic::CatchPanicLayer;
pub use dead_letter::DeadLetterLayer;
pub use delayed_retry::DelayedRetryLayer;
#[cfg(feature = "metrics")]
pub use metrics::MetricsLayer;
#[cfg(feature = "rate-limit")]
pub use rate_limit::RateLimitLayer;
pub use retry::RetryLayer;
pub use timeout::TimeoutLayer;
pub use trace::TraceLayer;

use crate::{Failure, Outcome};

/// The outcome of a delivery as logs and metrics name it.
pub(crate) fn outcome_name(result: &Result<Outcome, Failure>) -> &'static str {
    match result {
        Ok(Outcome::Processed) => "processed",
        Ok(Outcome::Duplicate | Outcome::Superseded) => "duplicate",
        Ok(Outcome::DeadLettered) => "dead_lettered",
        Ok(Outcome::Deferred) => "deferred",
        Err(failure) if failure.is_cancelled() => "returned",
        Err(_) => "failed",
    }
}
