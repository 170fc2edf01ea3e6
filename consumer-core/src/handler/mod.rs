//! Handlers: async functions with extractors.
//!
//! # What is a handler
//! Anything that implements `Service<Message>`. The stack asks for nothing more, so a struct with its own `Service`
//! implementation needs nothing of this module.
//!
//! [`handler`] makes one from an async function. Its arguments, up to eight, are *extractors*: each says what it needs
//! of the message by its type.
//!
//! | argument | is | fails when |
//! |---|---|---|
//! | `Json<T>` | the payload, decoded (feature `json`) | it does not decode, or is a tombstone: *undecodable* |
//! | `Bytes` | the payload as it is, empty for a tombstone | never |
//! | [`Headers`](crate::Headers) | the headers | never |
//! | [`MessageKey`] | the message key | there is none: *permanent* |
//! | [`MessageId`] | the message id | there is none: *permanent* |
//! | [`Attempt`] | the number of this attempt, from 1 | never |
//! | [`Epoch`] | the fencing token of the claim | never |
//! | [`State<T>`] | what [`with_state`](HandlerFn::with_state) was given, or a part of it ([`FromRef`]) | never |
//! | `CancellationToken` | cancelled when the message is to be handed back, and when this call is over | never |
//! | [`Message`](crate::Message) | the message itself | never |
//! | `Option<E>` | `None` where the message has no such thing | what is there cannot be read |
//! | `Result<E, Failure>` | the extractor or its failure | never |
//!
//! It returns `()`, `Result<(), E>` or `Result<Outcome, E>`, where `E` is any error that converts into a box: it is a
//! transient failure unless it is a [`Failure`](crate::Failure) that says otherwise.
//!
//! A message with a [defect](crate::Message::defect) is undecodable before any extractor runs.
//!
//! # Example
//! ```
//! use consumer_core::{Failure, Message, ResultExt, handler::{Attempt, FromRef, Json, State, handler}};
//! use serde::Deserialize;
//! use tower::ServiceExt;
//!
//! #[derive(Deserialize)]
//! struct OrderPlaced { order_id: String, email: String }
//!
//! #[derive(Clone)]
//! struct Mailer;
//! # impl Mailer { async fn send(&self, _to: &str, _id: &str) -> Result<(), std::io::Error> { Ok(()) } }
//!
//! #[derive(Clone)]
//! struct App { mailer: Mailer }
//!
//! impl FromRef<App> for Mailer {
//!     fn from_ref(app: &App) -> Self { app.mailer.clone() }
//! }
//!
//! async fn confirm(
//!     Json(order): Json<OrderPlaced>,
//!     State(mailer): State<Mailer>,
//!     Attempt(attempt): Attempt,
//! ) -> Result<(), Failure> {
//!     if !order.email.contains('@') {
//!         return Err("no mail address").permanent();
//!     }
//!     mailer.send(&order.email, &order.order_id).await?; // any error is transient unless said otherwise
//!     println!("sent at attempt {attempt}");
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! let service = handler(confirm).with_state(App { mailer: Mailer });
//! service.oneshot(Message::new(r#"{"order_id":"o-17","email":"ann@example.com"}"#)).await?;
//! # Ok(())
//! # }
//! ```

pub mod extract;
mod result;
mod service;
mod shape;
#[cfg(all(test, feature = "json"))]
mod tests;

#[cfg(feature = "json")]
pub use extract::Json;
pub use extract::{Attempt, Epoch, FromMessage, FromRef, MessageId, MessageKey, State};
pub use result::IntoResult;
pub use service::{HandlerFn, HandlerFuture, HandlerService, handler};
pub use shape::{Handler, HandlerShape};
