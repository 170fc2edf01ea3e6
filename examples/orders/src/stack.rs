//! The stack around the handler. Nothing here knows which broker and store are behind it.

use std::time::Duration;

use consumer::{
    DeadLetterLayer, DedupLayer, DelayedRetryLayer, DynPublisher, Pipeline, RateLimitLayer, RetryLayer,
    TraceLayer,
    dedup::{DynStore, IdempotencyKey},
    pipeline::Explanation,
    runtime::Stack,
};
/// What the stack is to do.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The consumer group, and the scope of what is remembered.
    pub(crate) group: String,
    pub(crate) dead_letter: String,
    pub(crate) attempts: u32,
    pub(crate) backoff: Duration,
    /// In a second; 0 is unlimited.
    pub(crate) rate: u32,
    pub(crate) lease: Duration,
    pub(crate) retention: Duration,
    /// What still fails comes again by the broker after each of these.
    pub(crate) delays: Vec<Duration>,
}

impl Settings {
    pub(crate) fn dedup(&self, store: DynStore) -> DedupLayer<DynStore> {
        DedupLayer::new(store, &*self.group)
            .key(IdempotencyKey::message_id())
            .lease(self.lease)
            .retention(self.retention)
            .max_crashes(self.attempts)
    }
}

/// The layers around `handler`, and what they guarantee in words.
pub(crate) fn stack<H: Stack>(
    settings: &Settings,
    dead: DynPublisher,
    dedup: DedupLayer<DynStore>,
    handler: H,
) -> (impl Stack + use<H>, Explanation) {
    let delayed =
        DelayedRetryLayer::new(dead.clone()).delays(settings.delays.iter().copied()).parking(dedup.parking());
    let pipeline = Pipeline::new()
        .trace(TraceLayer::new())
        .dead_letter(DeadLetterLayer::new(dead, &*settings.dead_letter))
        .delayed_retry(delayed)
        .dedup(dedup)
        .retry(RetryLayer::exponential(settings.backoff).max_attempts(settings.attempts))
        .rate_limit(RateLimitLayer::per_second(settings.rate));
    let explanation = pipeline.explain();
    (pipeline.service(handler), explanation)
}
