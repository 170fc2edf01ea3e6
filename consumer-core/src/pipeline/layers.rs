//! Layers that say what others do.

use tower::{
    Layer,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
};

use super::{Explain, Facts};

/// Tower's concurrency limit, with a number that can be told.
#[derive(Debug, Clone)]
#[must_use]
pub struct Concurrency(usize);

impl Concurrency {
    /// At most `max` calls at once.
    pub fn new(max: usize) -> Self {
        Self(max)
    }
}

impl<S> Layer<S> for Concurrency {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimitLayer::new(self.0).layer(inner)
    }
}

impl Explain for Concurrency {
    fn explain(&self, facts: &mut Facts) {
        facts.concurrency = Some(Some(self.0));
    }
}

/// A layer of another crate, with words for what it does.
///
/// ```
/// use consumer_core::{Pipeline, pipeline::Foreign};
/// use tower::load_shed::LoadShedLayer;
///
/// let pipeline = Pipeline::new()
///     .concurrency_limit(Foreign::new("Sheds what comes while the handler is busy.", LoadShedLayer::new()));
/// assert!(pipeline.explain().to_string().contains("Sheds what comes"));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Foreign<L> {
    words: String,
    layer: L,
}

impl<L> Foreign<L> {
    /// The layer, and a sentence on what it does.
    pub fn new(words: impl Into<String>, layer: L) -> Self {
        Self { words: words.into(), layer }
    }
}

impl<S, L: Layer<S>> Layer<S> for Foreign<L> {
    type Service = L::Service;

    fn layer(&self, inner: S) -> Self::Service {
        self.layer.layer(inner)
    }
}

impl<L> Explain for Foreign<L> {
    fn explain(&self, facts: &mut Facts) {
        facts.foreign.push(self.words.clone());
    }
}
