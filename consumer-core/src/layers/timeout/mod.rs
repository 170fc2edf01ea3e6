//! Gives a call a limited time.
//!
//! # Why
//! A call that never ends holds its message, its place among those executing, and on Kafka the partition's progress.
//!
//! # What it guarantees
//! - A call without a result after the timeout is dropped, and the message fails with a transient failure whose source
//!   is a [`TimedOut`].
//! - The time runs from the end of the first poll, and waiting for readiness is not part of it.
//! - A call that is ready at once costs no timer.
//!
//! It does not guarantee that the call had no effect, nor can it stop a handler that blocks its thread or what a
//! handler has spawned: for that there is the [cancellation](crate::Message::cancellation).
//!
//! Unlike tower's own timeout it keeps [`Failure`](crate::Failure) as the error type.
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use consumer_core::{Failure, Message, TimeoutLayer, layers::timeout::TimedOut};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let stack = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(10)))
//!     .service(service_fn(|_: Message| std::future::pending::<Result<(), Failure>>()));
//! let failure = stack.oneshot(Message::new("{}")).await.unwrap_err();
//! assert!(failure.is_transient());
//! assert_eq!(failure.find::<TimedOut>().map(TimedOut::after), Some(Duration::from_secs(10)));
//! # }
//! ```

mod layer;
mod service;
#[cfg(test)]
mod tests;

pub use layer::TimeoutLayer;
pub use service::{TimedOut, Timeout, TimeoutFuture};
