//! What an operator is shown of a row.

use std::time::SystemTime;

use consumer_core::Headers;

use super::{count, dialect::Dialect, filter::OutboxState, time};
use crate::outbox::headers;

/// A row of the outbox, without headers and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxRow {
    /// The number of the row. Rows of one destination and key are published in its order.
    pub id: i64,
    /// Where it stands.
    pub state: OutboxState,
    /// The topic or queue.
    pub destination: String,
    /// By which consumers deduplicate.
    pub message_id: String,
    /// What an order is kept within; none has no order.
    pub key: Option<Vec<u8>>,
    /// How often the broker has refused it.
    pub attempts: u32,
    /// What it said the last time.
    pub error: Option<String>,
    /// When it was written.
    pub created_at: SystemTime,
    /// When it is tried again.
    pub due_at: Option<SystemTime>,
    /// When the broker confirmed it.
    pub published_at: Option<SystemTime>,
    /// The size of the payload; none is a tombstone.
    pub bytes: Option<u64>,
}

/// A row of the outbox with everything.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxMessage {
    /// The rest of it.
    pub row: OutboxRow,
    /// The headers, as they are in the table.
    pub headers: String,
    /// The payload; none is a tombstone.
    pub payload: Option<Vec<u8>>,
}

impl OutboxMessage {
    /// The headers as they will be published, or why they cannot be read.
    ///
    /// # Errors
    /// In words, as the row is quarantined with them.
    pub fn read_headers(&self) -> Result<Headers, String> {
        headers::read(&self.headers)
    }
}

impl OutboxRow {
    pub(super) fn columns<DB: Dialect>() -> String {
        format!(
            "id, {}, destination, message_id, message_key, CAST(attempts AS bigint), error, {}, {}, {}, \
             CAST(octet_length(payload) AS bigint)",
            OutboxState::CODE,
            DB::millis("created_at"),
            DB::millis("due_at"),
            DB::millis("published_at"),
        )
    }

    /// How many columns that is.
    pub(super) const COLUMNS: usize = 11;

    pub(super) fn read<DB: Dialect>(row: &DB::Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: DB::int(row, 0)?.unwrap_or_default(),
            state: OutboxState::of_code(DB::int(row, 1)?),
            destination: DB::text(row, 2)?.unwrap_or_default(),
            message_id: DB::text(row, 3)?.unwrap_or_default(),
            key: DB::bytes(row, 4)?,
            attempts: DB::int(row, 5)?.and_then(|it| u32::try_from(it).ok()).unwrap_or(0),
            error: DB::text(row, 6)?,
            created_at: time(DB::int(row, 7)?.unwrap_or_default()),
            due_at: DB::int(row, 8)?.map(time),
            published_at: DB::int(row, 9)?.map(time),
            bytes: DB::int(row, 10)?.map(|bytes| count(Some(bytes))),
        })
    }
}
