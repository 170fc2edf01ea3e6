//! What the runtime measures.

#[cfg(feature = "metrics")]
use crate::layers::metrics::names;

#[cfg(feature = "metrics")]
pub(super) struct Meter {
    received: metrics::Counter,
    held: metrics::Gauge,
    executing: metrics::Gauge,
    lag: metrics::Gauge,
    since_settle: metrics::Gauge,
    discarded: metrics::Counter,
    unsettled: metrics::Counter,
}

#[cfg(feature = "metrics")]
impl Meter {
    pub(super) fn new(consumer: &str) -> Self {
        let label = || consumer.to_owned();
        Self {
            received: metrics::counter!(names::RECEIVED, names::CONSUMER => label()),
            held: metrics::gauge!(names::HELD, names::CONSUMER => label()),
            executing: metrics::gauge!(names::EXECUTING, names::CONSUMER => label()),
            lag: metrics::gauge!(names::LAG, names::CONSUMER => label()),
            since_settle: metrics::gauge!(names::SINCE_LAST_SETTLE, names::CONSUMER => label()),
            discarded: metrics::counter!(names::DISCARDED, names::CONSUMER => label()),
            unsettled: metrics::counter!(names::UNSETTLED, names::CONSUMER => label()),
        }
    }

    pub(super) fn received(&self, deliveries: usize) {
        self.received.increment(deliveries as u64);
    }

    pub(super) fn discarded(&self) {
        self.discarded.increment(1);
    }

    pub(super) fn unsettled(&self, messages: u64) {
        self.unsettled.increment(messages);
    }

    /// `since_settle` in seconds; 0 with nothing held.
    pub(super) fn observe(&self, held: usize, executing: usize, lag: Option<u64>, since_settle: f64) {
        self.held.set(held as f64);
        self.executing.set(executing as f64);
        self.since_settle.set(since_settle);
        if let Some(lag) = lag {
            self.lag.set(lag as f64);
        }
    }
}

#[cfg(not(feature = "metrics"))]
pub(super) struct Meter;

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(super) fn new(_: &str) -> Self {
        Self
    }

    pub(super) fn received(&self, _: usize) {}

    pub(super) fn discarded(&self) {}

    pub(super) fn unsettled(&self, _: u64) {}

    pub(super) fn observe(&self, _: usize, _: usize, _: Option<u64>, _: f64) {}
}
