//! What the inbox counts.

#[cfg(feature = "metrics")]
use consumer_core::layers::metrics::names;

/// Handles are made once: the recorder has to be installed before the stack is built.
pub(super) struct Meter {
    #[cfg(feature = "metrics")]
    keyless: metrics::Counter,
    #[cfg(feature = "metrics")]
    unused: metrics::Counter,
}

#[cfg(feature = "metrics")]
impl Meter {
    pub(super) fn new(consumer: &str) -> Self {
        Self {
            keyless: metrics::counter!(names::KEYLESS, names::CONSUMER => consumer.to_owned()),
            unused: metrics::counter!(names::INBOX_UNUSED, names::CONSUMER => consumer.to_owned()),
        }
    }

    pub(super) fn keyless(&self) {
        self.keyless.increment(1);
    }

    pub(super) fn unused(&self) {
        self.unused.increment(1);
    }
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(super) fn new(_: &str) -> Self {
        Self {}
    }

    pub(super) fn keyless(&self) {}

    pub(super) fn unused(&self) {}
}
