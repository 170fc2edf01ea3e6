//! Configuration of tracing.

use tower::Layer;
use tracing::Level;

use super::Trace;
use crate::pipeline::{Explain, Facts};

/// A span for each delivery. See the [module](super) for what it records.
#[derive(Debug, Clone)]
#[must_use]
pub struct TraceLayer(Levels);

#[derive(Debug, Clone, Copy)]
pub(super) struct Levels {
    pub(super) span: Level,
    pub(super) success: Level,
    pub(super) failure: Level,
}

impl TraceLayer {
    /// Span at `INFO`, successes at `DEBUG`, failures at `WARN`.
    pub fn new() -> Self {
        Self(Levels { span: Level::INFO, success: Level::DEBUG, failure: Level::WARN })
    }

    /// Sets the level of the span. Default `INFO`.
    pub fn level(mut self, level: Level) -> Self {
        self.0.span = level;
        self
    }

    /// Sets the level of the event for a message that was dealt with or handed back. Default `DEBUG`.
    pub fn on_success(mut self, level: Level) -> Self {
        self.0.success = level;
        self
    }

    /// Sets the level of the event for a failure that leaves the stack. Default `WARN`.
    pub fn on_failure(mut self, level: Level) -> Self {
        self.0.failure = level;
        self
    }
}

impl Default for TraceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace::new(inner, self.0)
    }
}

impl Explain for TraceLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.trace = true;
    }
}
