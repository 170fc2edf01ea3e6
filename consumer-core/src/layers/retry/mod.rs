//! Tries a message again, in this process, when it failed for a reason that may pass.
//!
//! # Why
//! Most failures are short: a lost connection, a lock, a busy service. Trying again in place keeps the message where
//! it is (its key stays in order, its claim is kept) and needs no broker.
//!
//! # What it guarantees
//! - Only *transient* failures are tried again. Permanent and undecodable ones, and messages that are handed back,
//!   leave at once.
//! - At most `max_attempts` calls in all, those of other processes included where the message tells of them
//!   ([`Message::attempt`](crate::Message::attempt)). A message that arrives at the bound, or past it, gets exactly
//!   one call.
//! - The failure that leaves says how many calls failed and when the first did. A failure whose attempts are used up
//!   stays transient.
//! - While it waits it holds no permit of what is inside, and it heeds the message's cancellation: the message is then
//!   handed back, and the call that was never made counts nothing.
//!
//! A transient failure of a message whose [cancellation](crate::Message::cancellation) has fired is how its call came
//! back: it is handed back and counts nothing.
//!
//! It does not guarantee that a failed attempt had no effect: a call that timed out may have gone through.
//!
//! # Where it goes
//! Inside the dedup layer and outside of every limit, as [`Pipeline`](crate::Pipeline) places it. Inside a concurrency
//! limit, a message holds its permit while it waits: others wait for that permit, and when a message has to run alone
//! after a crash, the two can wait for each other for ever. Outside the dedup layer each attempt claims the key anew.
//!
//! # Defaults
//! | setting | default | why |
//! |---|---|---|
//! | `max_attempts` | 3 | past that it is seldom a hiccup |
//! | `cap` | 1 min | a longer wait belongs to the broker, not to memory |
//! | `jitter` | full for exponential, none for fixed | messages that failed together do not return together |
//! | `max_elapsed` | none | |
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use consumer_core::{Failure, Message, RetryLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Failure> {
//! let stack = ServiceBuilder::new()
//!     .layer(RetryLayer::exponential(Duration::from_secs(1)).max_attempts(3))
//!     .service(service_fn(|message: Message| async move {
//!         if message.attempt() < 3 { Err("the provider is away") } else { Ok(()) }
//!     }));
//! stack.oneshot(Message::new("{}")).await?;
//! # Ok(())
//! # }
//! ```

mod layer;
mod policy;
mod service;
#[cfg(test)]
mod tests;

pub use layer::RetryLayer;
pub use service::{Retry, RetryFuture};
