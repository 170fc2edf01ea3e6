//! Which rows of the outbox are meant.

use std::fmt;

use super::{
    dialect::Dialect,
    statement::{Statement, Value},
};

/// Where a row of the outbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OutboxState {
    /// It is published next.
    Waiting,
    /// An earlier row of its destination and key has failed, and goes first.
    Held,
    /// The broker has refused it; it is tried again when its wait is over.
    Retrying,
    /// It is not tried any more: somebody has to look.
    Quarantined,
    /// The broker has it. Only where a relay keeps a [history](crate::Relay::history).
    Published,
}

impl OutboxState {
    /// As [`code`](Self::of_code) gives it.
    pub(super) const CODE: &'static str =
        "CAST(CASE WHEN state = 2 AND due_at IS NOT NULL THEN 4 ELSE state END AS bigint)";

    pub(super) fn of_code(code: Option<i64>) -> Self {
        match code {
            Some(1) => Self::Held,
            Some(2) => Self::Quarantined,
            Some(3) => Self::Published,
            Some(4) => Self::Retrying,
            _ => Self::Waiting,
        }
    }

    fn condition(self) -> &'static str {
        match self {
            Self::Waiting => "state = 0",
            Self::Held => "state IN (1, 2) AND state = 1",
            Self::Retrying => "state = 2 AND due_at IS NOT NULL",
            Self::Quarantined => "state IN (1, 2) AND state = 2 AND due_at IS NULL",
            Self::Published => "state = 3",
        }
    }
}

/// In one word, lower case.
impl fmt::Display for OutboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Retrying => "retrying",
            Self::Quarantined => "quarantined",
            Self::Published => "published",
        })
    }
}

/// Rows of the outbox that everything said here is true of; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct OutboxFilter {
    state: Option<OutboxState>,
    row: Option<i64>,
    destination: Option<String>,
    key: Option<Vec<u8>>,
    message_id: Option<String>,
    error: Option<String>,
}

impl OutboxFilter {
    /// Only rows that stand there.
    pub fn state(mut self, state: OutboxState) -> Self {
        self.state = Some(state);
        self
    }

    /// Only the row of this number.
    pub fn row(mut self, row: i64) -> Self {
        self.row = Some(row);
        self
    }

    /// Only rows for this topic or queue.
    pub fn destination(mut self, destination: impl Into<String>) -> Self {
        self.destination = Some(destination.into());
        self
    }

    /// Only rows of this message key.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Only rows of this message id.
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.message_id = Some(id.into());
        self
    }

    /// Only rows with this text in the error.
    pub fn error(mut self, text: impl Into<String>) -> Self {
        self.error = Some(text.into());
        self
    }

    /// Whether it says nothing, but for the state.
    pub fn is_all(&self) -> bool {
        let Self { state: _, row, destination, key, message_id, error } = self;
        row.is_none() && destination.is_none() && key.is_none() && message_id.is_none() && error.is_none()
    }

    /// Further conditions of a `WHERE`.
    pub(super) fn and<DB: Dialect>(&self, mut statement: Statement) -> Statement {
        if let Some(state) = self.state {
            statement = statement.push(" AND ").push(state.condition());
        }
        if let Some(row) = self.row {
            statement = statement.push(" AND id = ").bind(Value::Int(row));
        }
        if let Some(destination) = &self.destination {
            statement = statement.push(" AND destination = ").bind(Value::Text(destination.clone()));
        }
        if let Some(key) = &self.key {
            statement = statement.push(" AND message_key = ").bind(Value::Bytes(key.clone()));
        }
        if let Some(id) = &self.message_id {
            statement = statement.push(" AND message_id = ").bind(Value::Text(id.clone()));
        }
        if let Some(text) = &self.error {
            let position = format!(" AND {}(error, ", DB::POSITION);
            statement = statement.push(&position).bind(Value::Text(text.clone())).push(") > 0");
        }
        statement
    }
}
