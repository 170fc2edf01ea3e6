//! The store's clock, as the client tracks it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a reading of `TIME` is extrapolated before it is read again.
const REFRESH: Duration = Duration::from_secs(60);

/// Milliseconds of the store's `TIME`, advanced by the monotonic clock. The client's wall clock is never asked.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Option<Reading>>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    millis: u64,
}

impl Clock {
    fn get(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `TIME` should go out with the next pipeline.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.get().is_none_or(|reading| now.duration_since(reading.at) >= REFRESH)
    }

    /// The store said `millis` to a question sent at `sent` whose answer came at `received`.
    pub(crate) fn set(&self, millis: u64, sent: Instant, received: Instant) {
        let at = sent + received.duration_since(sent) / 2;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reading { at, millis });
    }

    /// The store's time now; 0 before the first reading, which connecting makes.
    pub(crate) fn now(&self, now: Instant) -> u64 {
        self.get().map_or(0, |reading| {
            let passed = now.saturating_duration_since(reading.at).as_millis();
            reading.millis.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn goes_on_from_the_last_reading() {
        let clock = Clock::default();
        let sent = Instant::now();
        assert!(clock.is_stale(sent));
        clock.set(1_000_000, sent, sent + Duration::from_millis(20));
        assert_eq!(clock.now(sent + Duration::from_millis(110)), 1_000_100);
        assert!(!clock.is_stale(sent + Duration::from_secs(60)));
        assert!(clock.is_stale(sent + Duration::from_secs(61)));
        clock.set(5_000_000, sent + Duration::from_secs(61), sent + Duration::from_secs(61));
        assert_eq!(clock.now(sent + Duration::from_secs(62)), 5_001_000);
    }
}
