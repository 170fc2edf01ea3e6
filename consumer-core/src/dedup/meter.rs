//! What the dedup layer counts.

use std::{sync::Arc, time::Duration};

use super::Resolved;
#[cfg(feature = "metrics")]
use crate::layers::metrics::{Attempts, names};

/// Handles are made once: the recorder has to be installed before the stack is built.
#[derive(Clone)]
pub(super) struct Meter {
    #[cfg(feature = "metrics")]
    handles: Arc<Handles>,
}

#[cfg(feature = "metrics")]
struct Handles {
    busy: metrics::Counter,
    overlap: metrics::Counter,
    bypassed: metrics::Counter,
    keyless: metrics::Counter,
    suspects: metrics::Counter,
    lost: metrics::Counter,
    calls: Attempts,
    claim: metrics::Histogram,
    complete: metrics::Histogram,
}

#[cfg(feature = "metrics")]
impl Meter {
    pub(super) fn new(consumer: &Arc<str>) -> Self {
        let label = || consumer.to_string();
        let store = |operation: &'static str| metrics::histogram!(names::STORE_DURATION, names::CONSUMER => label(), names::OPERATION => operation);
        let handles = Handles {
            busy: metrics::counter!(names::BUSY, names::CONSUMER => label()),
            overlap: metrics::counter!(names::OVERLAP, names::CONSUMER => label()),
            bypassed: metrics::counter!(names::BYPASSED, names::CONSUMER => label()),
            keyless: metrics::counter!(names::KEYLESS, names::CONSUMER => label()),
            suspects: metrics::counter!(names::CRASH_SUSPECTS, names::CONSUMER => label()),
            lost: metrics::counter!(names::CLAIMS_LOST, names::CONSUMER => label()),
            calls: Attempts::of(consumer),
            claim: store("claim"),
            complete: store("complete"),
        };
        Self { handles: Arc::new(handles) }
    }

    pub(super) fn busy(&self) {
        self.handles.busy.increment(1);
    }

    pub(super) fn bypassed(&self) {
        self.handles.bypassed.increment(1);
    }

    pub(super) fn keyless(&self) {
        self.handles.keyless.increment(1);
    }

    pub(super) fn suspect(&self) {
        self.handles.suspects.increment(1);
    }

    pub(super) fn lost(&self) {
        self.handles.lost.increment(1);
    }

    pub(super) fn called(&self, ok: bool) {
        self.handles.calls.count(ok);
    }

    pub(super) fn claim_answered(&self, latency: Duration) {
        self.handles.claim.record(latency);
    }

    pub(super) fn complete_answered(&self, latency: Duration) {
        self.handles.complete.record(latency);
    }

    pub(super) fn completed(&self, resolved: Resolved) {
        if matches!(resolved, Resolved::Overlapped | Resolved::AlreadyCompleted) {
            self.handles.overlap.increment(1);
        }
    }
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(super) fn new(_: &Arc<str>) -> Self {
        Self {}
    }

    pub(super) fn busy(&self) {}

    pub(super) fn bypassed(&self) {}

    pub(super) fn keyless(&self) {}

    pub(super) fn suspect(&self) {}

    pub(super) fn lost(&self) {}

    pub(super) fn called(&self, _: bool) {}

    pub(super) fn claim_answered(&self, _: Duration) {}

    pub(super) fn complete_answered(&self, _: Duration) {}

    pub(super) fn completed(&self, _: Resolved) {}
}
