//! Statements put together from what is asked for.

use std::fmt::Write;

/// A value of a statement.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Text with numbered places, and the values for them.
#[derive(Debug, Clone)]
pub struct Statement {
    pub(super) text: String,
    pub(super) values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    pub(super) fn push(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    pub(super) fn bind(mut self, value: Value) -> Self {
        self.values.push(value);
        let _ = write!(self.text, "${}", self.values.len());
        self
    }

    /// A point in time, in milliseconds since the epoch, in the column's type.
    pub(super) fn bind_time<DB: super::dialect::Dialect>(mut self, millis: i64) -> Self {
        self.values.push(Value::Int(millis));
        self.text.push_str(&DB::time(self.values.len()));
        self
    }
}
