//! Extractors for the parts of a message.

use std::{fmt, str};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::FromMessage;
use crate::{Failure, Headers, Message};

/// The message itself; a clone costs reference counts only.
impl<S> FromMessage<S> for Message {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(message.clone())
    }
}

/// The payload as it is. A tombstone gives empty bytes, or `None` as an `Option<Bytes>`.
impl<S> FromMessage<S> for Bytes {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(message.payload().clone())
    }

    fn from_message_opt(message: &Message, _: &S) -> Result<Option<Self>, Failure> {
        Ok((!message.is_tombstone()).then(|| message.payload().clone()))
    }
}

/// The headers, copied: the list is, the values are not.
impl<S> FromMessage<S> for Headers {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(message.headers().clone())
    }
}

/// Cancelled when the message is to be handed back, and when the call of the handler ends or is dropped. What a
/// handler spawns should watch it. A handler that heeds it may return any error: a transient failure of a message that is
/// to be handed back counts nothing.
impl<S> FromMessage<S> for CancellationToken {
    const CANCELLATION: bool = true;

    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(message.cancellation().clone())
    }
}

macro_rules! bytes_extractor {
    ($(#[$docs:meta])* $name:ident, $get:ident, $missing:literal) => {
        $(#[$docs])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(pub Bytes);

        impl $name {
            /// As text, if it is UTF-8.
            pub fn as_str(&self) -> Option<&str> {
                str::from_utf8(&self.0).ok()
            }
        }

        impl<S> FromMessage<S> for $name {
            fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
                message.$get().cloned().map($name).ok_or_else(|| Failure::permanent($missing))
            }

            fn from_message_opt(message: &Message, _: &S) -> Result<Option<Self>, Failure> {
                Ok(message.$get().cloned().map($name))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                String::from_utf8_lossy(&self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), String::from_utf8_lossy(&self.0))
            }
        }
    };
}

bytes_extractor! {
    /// The message key, which groups messages for order. Without one the message fails permanently; take an
    /// `Option<MessageKey>` where that is normal.
    MessageKey, key, "the message has no key"
}

bytes_extractor! {
    /// The message id. Without one the message fails permanently; take an `Option<MessageId>` where that is normal.
    MessageId, id, "the message has no id"
}

/// The number of this attempt, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u32);

impl<S> FromMessage<S> for Attempt {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(Attempt(message.attempt()))
    }
}

/// The epoch of the claim under which the message runs: a fencing token that grows with every claim of its key. Hand it
/// to what stores the effect, which then refuses writers with a lower one. 0 without a dedup layer, and `None` then as
/// an `Option<Epoch>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl<S> FromMessage<S> for Epoch {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Ok(Epoch(message.epoch()))
    }

    fn from_message_opt(message: &Message, _: &S) -> Result<Option<Self>, Failure> {
        Ok((message.epoch() > 0).then(|| Epoch(message.epoch())))
    }
}
