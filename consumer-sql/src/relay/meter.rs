//! What a relay measures.

use super::Lag;

/// The names of the metrics.
pub mod names {
    /// Rows that the broker has confirmed; counter.
    pub const PUBLISHED: &str = "relay_published_total";
    /// Attempts at rows that the broker refused; counter.
    pub const FAILED: &str = "relay_failed_total";
    /// Rows that are not tried any more; counter.
    pub const QUARANTINED: &str = "relay_quarantined_total";
    /// Rows that wait to be published; gauge.
    pub const WAITING: &str = "relay_waiting";
    /// The age of the oldest of them, in seconds; gauge.
    pub const OLDEST: &str = "relay_oldest_seconds";
    /// Rows held behind a failed one of their key; gauge.
    pub const HELD: &str = "relay_held";
    /// Rows in quarantine; gauge.
    pub const IN_QUARANTINE: &str = "relay_in_quarantine";
}

#[cfg(feature = "metrics")]
pub(super) struct Meter;

#[cfg(feature = "metrics")]
impl Meter {
    pub(super) fn settled(&self, published: usize, failed: usize, quarantined: usize) {
        metrics::counter!(names::PUBLISHED).increment(published as u64);
        metrics::counter!(names::FAILED).increment(failed as u64);
        metrics::counter!(names::QUARANTINED).increment(quarantined as u64);
    }

    pub(super) fn lag(&self, lag: &Lag) {
        metrics::gauge!(names::WAITING).set(lag.waiting as f64);
        metrics::gauge!(names::OLDEST).set(lag.oldest.as_secs_f64());
        metrics::gauge!(names::HELD).set(lag.held as f64);
        metrics::gauge!(names::IN_QUARANTINE).set(lag.quarantined as f64);
    }
}

#[cfg(not(feature = "metrics"))]
pub(super) struct Meter;

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(super) fn settled(&self, _: usize, _: usize, _: usize) {}

    pub(super) fn lag(&self, _: &Lag) {}
}
