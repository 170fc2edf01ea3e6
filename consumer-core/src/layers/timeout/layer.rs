//! Configuration of timeouts.

use std::time::Duration;

use tower::Layer;

use super::Timeout;
use crate::pipeline::{Explain, Facts};

/// Gives each call a limited time. See the [module](super) for what it guarantees.
#[derive(Debug, Clone)]
#[must_use]
pub struct TimeoutLayer(Duration);

impl TimeoutLayer {
    /// Gives each call this long.
    pub fn new(timeout: Duration) -> Self {
        Self(timeout)
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout::new(inner, self.0)
    }
}

impl Explain for TimeoutLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.timeout = Some(self.0);
    }
}
