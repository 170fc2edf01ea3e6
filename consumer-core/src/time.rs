//! The wall clock, for the times that go into headers. Everything that waits follows tokio's clock.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What `Duration::MAX` is taken for: long enough for anybody, and safe to add to any time.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Tells the time of day.
pub trait WallClock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

impl<F: Fn() -> SystemTime + Send + Sync + 'static> WallClock for F {
    fn now(&self) -> SystemTime {
        self()
    }
}

/// The system's clock.
pub(crate) fn system() -> Arc<dyn WallClock> {
    Arc::new(SystemTime::now)
}
