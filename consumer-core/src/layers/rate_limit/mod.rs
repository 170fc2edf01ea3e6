//! Spreads calls over time: at most so many in a second, for all messages together or for each key.
//!
//! # Why
//! What a handler calls often has a limit of its own. A consumer that catches up on a backlog would run into it at
//! once, and every refusal would cost an attempt.
//!
//! # What it guarantees
//! - It *smooths*: a message past the rate waits for its turn and is never dropped or failed.
//! - Every attempt takes a token, since the layer sits inside the retries. A duplicate takes none, since it does not
//!   come this far.
//! - Waiting messages go on in the order in which they began to wait, for each key.
//! - While it waits, a message holds no permit of what is inside, and heeds its cancellation: it is then handed back.
//! - The memory for keys is bounded: it follows the number of keys that are in use within the time a burst takes to
//!   build up.
//!
//! The limit holds for the stack that was built and its clones, in this process. Several processes have it once each.
//!
//! # Defaults
//! The burst is what comes in a tenth of a second at the given rate, and at least 1: so many calls may come at once
//! after a pause. Over any second at most 1.1 times the given rate of tokens is given out. Calls follow their tokens at
//! once, unless they then wait for a permit of what is inside, or for a message that runs alone: what was held up there
//! may start together. With a burst of 1, timers, which have a resolution of a millisecond, would hold rates above some
//! hundreds a second below what was asked for.
//!
//! # Where it goes
//! Outside a concurrency limit, as [`Pipeline`](crate::Pipeline) places it. Inside one, a message holds its permit
//! while it waits for a token: others wait for that permit, and when a message has to run alone after a crash, the two
//! can wait for each other for ever.
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use consumer_core::{Failure, Message, RateLimitLayer};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Failure> {
//! let mut stack = ServiceBuilder::new()
//!     .layer(RateLimitLayer::per_second(5).burst(1))
//!     .service(service_fn(|_: Message| async { Ok::<(), Failure>(()) }));
//! let start = tokio::time::Instant::now();
//! for _ in 0..6 {
//!     stack.ready().await?.call(Message::new("{}")).await?;
//! }
//! assert!(start.elapsed() >= Duration::from_secs(1));
//! # Ok(())
//! # }
//! ```

mod clock;
mod layer;
mod limiter;
mod service;
#[cfg(test)]
mod tests;

pub use layer::RateLimitLayer;
pub use service::{RateLimit, RateLimitFuture};
