//! One message as a row.

use consumer_core::{Message, Outgoing};

use super::headers;

/// What is written.
#[derive(Debug, Clone)]
pub struct NewRow {
    pub(crate) destination: String,
    pub(crate) message_id: String,
    pub(crate) message_key: Option<Vec<u8>>,
    pub(crate) headers: String,
    pub(crate) payload: Option<Vec<u8>>,
}

/// What is to be published.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) id: i64,
    /// Why not, where it cannot be read.
    pub(crate) message: Result<NewRow, String>,
    /// Refused ones before.
    pub(crate) attempts: u32,
    /// It was set aside before, refused or not: others may be held behind it.
    pub(crate) had_failed: bool,
}

impl Row {
    #[cfg(test)]
    pub(crate) fn of(id: i64, message: NewRow) -> Self {
        Self { id, message: Ok(message), attempts: 0, had_failed: false }
    }

    /// The message; an error where somebody has written what cannot be read.
    pub(crate) fn outgoing(&self) -> Result<Outgoing, String> {
        let message = self.message.as_ref().map_err(Clone::clone)?;
        let NewRow { destination, message_id, message_key, headers, payload } = message;
        if destination.is_empty() || message_id.is_empty() {
            return Err("the destination or the message id is empty".to_owned());
        }
        let mut message = Message::builder().headers(headers::read(headers)?).id(message_id.clone());
        if let Some(key) = message_key {
            message = message.key(key.clone());
        }
        if let Some(payload) = payload {
            message = message.payload(payload.clone());
        }
        Ok(Outgoing::copy(destination.as_str(), message.build()))
    }

    /// What an order is kept within.
    pub(crate) fn lane(&self) -> Option<(&str, &[u8])> {
        let message = self.message.as_ref().ok()?;
        Some((&message.destination, message.message_key.as_deref()?))
    }
}
