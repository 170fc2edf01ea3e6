//! Extractors: what a handler's arguments take from a message.

#[cfg(feature = "json")]
mod json;
mod parts;
mod state;

#[cfg(feature = "json")]
pub use json::Json;
pub use parts::{Attempt, Epoch, MessageId, MessageKey};
pub use state::{FromRef, State};

use crate::{Failure, Message};

/// What can be an argument of a handler whose state is an `S`.
///
/// ```
/// use consumer_core::{Failure, Message, ResultExt, handler::FromMessage};
///
/// /// The tenant a message belongs to.
/// struct Tenant(String);
///
/// impl<S> FromMessage<S> for Tenant {
///     fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
///         let tenant = message.headers().get_str("tenant").ok_or("no header `tenant`").permanent()?;
///         Ok(Tenant(tenant.to_owned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler whose state is `{S}`",
    label = "not an extractor for this state",
    note = "a handler takes up to eight extractors: `Json<T>` with `T: DeserializeOwned`, `Bytes`, `Headers`, `MessageKey`, `MessageId`, `Attempt`, `Epoch`, `State<T>`, `CancellationToken`, `Message`, an `Option` or a `Result<_, Failure>` of one, or your own `FromMessage`"
)]
pub trait FromMessage<S>: Sized {
    /// Whether the message's cancellation has to end with the call: only a handler that asks for a token pays for one
    /// of its own.
    #[doc(hidden)]
    const CANCELLATION: bool = false;

    /// Takes it from the message.
    ///
    /// # Errors
    /// When the message does not have it, or it cannot be read. Say so with [`Failure::permanent`] or
    /// [`Failure::undecodable`], since another attempt would find the same message.
    fn from_message(message: &Message, state: &S) -> Result<Self, Failure>;

    /// For arguments of type `Option<Self>`: `None` where the message has no such thing. Unless overridden it is never
    /// `None`.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    fn from_message_opt(message: &Message, state: &S) -> Result<Option<Self>, Failure> {
        Self::from_message(message, state).map(Some)
    }
}

impl<S, E: FromMessage<S>> FromMessage<S> for Option<E> {
    const CANCELLATION: bool = E::CANCELLATION;

    fn from_message(message: &Message, state: &S) -> Result<Self, Failure> {
        E::from_message_opt(message, state)
    }
}

impl<S, E: FromMessage<S>> FromMessage<S> for Result<E, Failure> {
    const CANCELLATION: bool = E::CANCELLATION;

    fn from_message(message: &Message, state: &S) -> Result<Self, Failure> {
        Ok(E::from_message(message, state))
    }
}
