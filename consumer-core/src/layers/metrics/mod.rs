//! Counts deliveries by outcome and measures how long they take, through the `metrics` facade.
//!
//! The recorder (an exporter for Prometheus, say) is the program's choice and must be installed before the stack is
//! built: a stack built earlier counts nothing.
//!
//! # What is recorded
//! All metrics of the framework, by this layer and by others, have the label `consumer`, the name of the logical
//! consumer, beside those named here. [`names`] has the names as constants, [`describe`] gives them to the recorder
//! with their units.
//!
//! | metric | kind | labels | by | |
//! |---|---|---|---|---|
//! | `consumer_deliveries_total` | counter | `outcome` | this layer | deliveries dealt with: `processed`, `duplicate`, `dead_lettered`, `deferred`, `failed`, `returned`, `dropped` |
//! | `consumer_delivery_duration_seconds` | histogram | `outcome` | this layer | from the call of the stack to its outcome, waits included |
//! | `consumer_failed_attempts` | histogram | | this layer | failed calls behind a failure that leaves the stack |
//! | `consumer_attempts_total` | counter | `result` | retry, inside dedup or with `consumer(name)` | calls of the handler: `ok`, `failed` |
//! | `consumer_received_total` | counter | | runtime | deliveries taken from the source |
//! | `consumer_unsettled_total` | counter | | runtime | settlements that did not reach the broker |
//! | `consumer_held` | gauge | | runtime | messages received and not settled |
//! | `consumer_executing` | gauge | | runtime | those of them that do not wait |
//! | `consumer_seconds_since_last_settle` | gauge | | runtime | grows when nothing gets done |
//! | `consumer_lag` | gauge | | runtime | messages that wait at the broker |
//! | `consumer_busy_total` | counter | | dedup | claims that found the key in other hands |
//! | `consumer_overlap_total` | counter | | dedup | effects that may have happened twice: completed though the claim was lost, or by two owners |
//! | `consumer_bypassed_total` | counter | | dedup | messages processed without protection while the store was down |
//! | `consumer_keyless_total` | counter | | dedup | messages processed without an idempotency key |
//! | `consumer_inbox_unused_total` | counter | | inbox | messages whose handler succeeded without the inbox's transaction |
//! | `consumer_claims_lost_total` | counter | | dedup | handlers stopped because their claim ran out or was taken over |
//! | `consumer_crash_suspects_total` | counter | | dedup | messages that had to run alone |
//! | `consumer_store_duration_seconds` | histogram | `operation` | dedup | answers of the store to what a message waits for: `claim`, `complete` |
//! | `consumer_dead_letter_publish_failures_total` | counter | | dead-letter | publishes that were not confirmed and are repeated |
//! | `consumer_dead_letter_stuck_total` | counter | | dead-letter | messages too large to be set aside |
//! | `consumer_discarded_total` | counter | | runtime | failures discarded on request |
//!
//! # Example
//! ```
//! use consumer_core::{Failure, Message, MetricsLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! consumer_core::layers::metrics::describe();
//! let stack = ServiceBuilder::new()
//!     .layer(MetricsLayer::new("order-mails"))
//!     .service(service_fn(|_: Message| async { Ok::<(), Failure>(()) }));
//! stack.oneshot(Message::new("{}")).await?;
//! # Ok(())
//! # }
//! ```

mod layer;
pub mod names;
mod service;
#[cfg(test)]
pub(crate) mod tests;

pub use layer::MetricsLayer;
pub use names::describe;
pub(crate) use service::Attempts;
pub use service::{Metrics, MetricsFuture};
