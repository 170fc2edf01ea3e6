//! Turns a panic into a failure of the message that caused it.
//!
//! # Why
//! Without it a panic takes the task along, and with it all that the stack wanted to do with the failure: count it,
//! try again, write a dead letter. It belongs innermost, right around the handler.
//!
//! # What it guarantees
//! - A panic while the handler is called or polled becomes a transient failure whose source is a [`Panicked`] with the
//!   panic's message.
//! - The future that panicked is dropped at once and never polled again. A second panic while it is dropped is caught
//!   as well.
//!
//! It catches nothing where panics abort (`panic = "abort"`), nor panics in what a handler has spawned. The panic hook
//! still runs and prints.
//!
//! # Example
//! ```
//! use consumer_core::{CatchPanicLayer, Failure, Message};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! async fn broken(_: Message) -> Result<(), Failure> {
//!     panic!("no such customer")
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let stack = ServiceBuilder::new().layer(CatchPanicLayer::new()).service(service_fn(broken));
//! let failure = stack.oneshot(Message::new("{}")).await.unwrap_err();
//! assert_eq!(failure.chain(), "transient failure: panicked: no such customer");
//! # }
//! ```

mod layer;
mod service;
#[cfg(test)]
mod tests;

pub use layer::CatchPanicLayer;
pub use service::{CatchPanic, CatchPanicFuture, Panicked};
