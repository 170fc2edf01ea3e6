//! The time of the in-memory broker and store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Wall time that was read once and goes on with tokio's clock, so that a paused clock rules it.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    started: Instant,
    at_start: Duration,
}

impl Clock {
    pub(super) fn new() -> Self {
        let at_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at_start }
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from((self.at_start + self.started.elapsed()).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn wall(&self) -> SystemTime {
        UNIX_EPOCH + self.at_start + self.started.elapsed()
    }
}
