//! Configuration of metrics.

use std::sync::Arc;

use tower::Layer;

use super::{Metrics, service::Deliveries};
use crate::pipeline::{Explain, Facts};

/// Counts and times deliveries. See the [module](super) for what it records.
#[derive(Debug, Clone)]
#[must_use]
pub struct MetricsLayer {
    consumer: Arc<str>,
}

impl MetricsLayer {
    /// Records under the name of this logical consumer.
    pub fn new(consumer: impl Into<Arc<str>>) -> Self {
        Self { consumer: consumer.into() }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics::new(inner, Deliveries::of(&self.consumer))
    }
}

impl Explain for MetricsLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.metrics = true;
    }
}
