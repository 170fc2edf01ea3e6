//! What went wrong.

use std::fmt;

use consumer_core::{BoxError, dead_letters::DeadLettersError};
use consumer_sql::SqlError;

/// Work that could not be done, or not to its end. What was settled before stays settled, the rest is as it was; starting
/// again is safe.
pub struct AdminError {
    message: String,
    usage: bool,
    source: Option<BoxError>,
}

impl AdminError {
    /// In words: what was being done, where, and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), usage: false, source: None }
    }

    /// Found without the network: a wrong URL, a missing feature.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(message) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether it was found without the network.
    pub fn is_usage(&self) -> bool {
        self.usage
    }

    /// With the causes, outermost first, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let own = error.to_string();
            if !text.ends_with(&own) {
                text = format!("{text}: {own}");
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Debug for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminError").field("message", &self.message).field("source", &self.source).finish()
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

impl From<SqlError> for AdminError {
    fn from(error: SqlError) -> Self {
        Self { usage: error.is_config(), ..Self::new(error.to_string()) }.with_source(error)
    }
}

impl From<DeadLettersError> for AdminError {
    fn from(error: DeadLettersError) -> Self {
        Self::new("the dead letters cannot be read").with_source(error)
    }
}
