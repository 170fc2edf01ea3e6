//! State that handlers share.

use super::FromMessage;
use crate::{Failure, Message};

/// What [`with_state`](crate::handler::HandlerFn::with_state) was given, cloned for each call; or a part of it, as
/// [`FromRef`] says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State<T>(pub T);

impl<S, T: FromRef<S>> FromMessage<S> for State<T> {
    fn from_message(_: &Message, state: &S) -> Result<Self, Failure> {
        Ok(State(T::from_ref(state)))
    }
}

/// What can be taken from a handler's state: the state itself, if it is `Clone`, and the parts for which one implements
/// it.
#[diagnostic::on_unimplemented(
    message = "`State<{Self}>` cannot be taken from a handler whose state is `{S}`",
    label = "this handler's state is not a `{Self}`",
    note = "give the handler its state with `handler(f).with_state(..)`, or implement `FromRef<{S}>` for `{Self}`"
)]
pub trait FromRef<S> {
    /// Takes it from the state; called once for each message, so it should be a cheap clone.
    fn from_ref(state: &S) -> Self;
}

impl<T: Clone> FromRef<T> for T {
    fn from_ref(state: &T) -> Self {
        state.clone()
    }
}
