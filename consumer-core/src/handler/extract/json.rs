//! JSON payloads.

use serde::de::DeserializeOwned;

use super::FromMessage;
use crate::{Failure, Message};

/// The payload, decoded from JSON. What does not decode is undecodable, and the failure says where; so is a tombstone,
/// unless one takes an `Option<Json<T>>`.
///
/// The error names line, column and what was expected. It may quote a scalar that has the wrong type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<S, T: DeserializeOwned> FromMessage<S> for Json<T> {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        if message.is_tombstone() {
            return Err(Failure::undecodable("the message is a tombstone: it has no payload"));
        }
        serde_json::from_slice(message.payload()).map(Json).map_err(Failure::undecodable)
    }

    fn from_message_opt(message: &Message, state: &S) -> Result<Option<Self>, Failure> {
        if message.is_tombstone() { Ok(None) } else { Self::from_message(message, state).map(Some) }
    }
}
