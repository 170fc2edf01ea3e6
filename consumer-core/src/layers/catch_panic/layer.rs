//! Configuration of panic catching: there is none.

use tower::Layer;

use super::CatchPanic;
use crate::pipeline::{Explain, Facts};

/// Turns panics into failures. See the [module](super) for what it guarantees.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct CatchPanicLayer(());

impl CatchPanicLayer {
    /// The layer.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic::new(inner)
    }
}

impl Explain for CatchPanicLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.catch_panic = true;
    }
}
