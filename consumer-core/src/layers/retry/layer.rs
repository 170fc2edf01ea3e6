//! Configuration of retries.

use std::{fmt, sync::Arc, time::Duration};

use tower::Layer;

use super::{
    policy::{Backoff, Schedule},
    service::{Policy, Retry},
};
use crate::{
    Failure,
    pipeline::{Explain, Facts, RetryFacts},
    time::{WallClock, system},
};

pub(super) type PermanentIf = Arc<dyn Fn(&Failure) -> bool + Send + Sync>;

/// Tries transient failures again in this process. See the [module](super) for what it guarantees.
#[derive(Clone)]
#[must_use]
pub struct RetryLayer {
    schedule: Schedule,
    permanent_if: Option<PermanentIf>,
    clock: Arc<dyn WallClock>,
    #[cfg(feature = "metrics")]
    consumer: Option<Arc<str>>,
}

impl RetryLayer {
    fn with(backoff: Backoff, jitter: bool, max_attempts: u32) -> Self {
        Self {
            schedule: Schedule { backoff, jitter, max_attempts, max_elapsed: None },
            permanent_if: None,
            clock: system(),
            #[cfg(feature = "metrics")]
            consumer: None,
        }
    }

    /// Waits `base` after the first failed attempt and twice as long after each further one, up to
    /// [`cap`](Self::cap), with full jitter; 3 attempts.
    pub fn exponential(base: Duration) -> Self {
        Self::with(Backoff::Exponential { base, cap: Duration::from_secs(60) }, true, 3)
    }

    /// Waits the same after each failed attempt, without jitter; 3 attempts.
    pub fn fixed(wait: Duration) -> Self {
        Self::with(Backoff::Fixed(wait), false, 3)
    }

    /// One attempt; the failed call is still counted.
    pub fn none() -> Self {
        Self::with(Backoff::Fixed(Duration::ZERO), false, 1)
    }

    /// Bounds the calls of one message in all; 0 counts as 1. Default 3.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.schedule.max_attempts = attempts.max(1);
        self
    }

    /// Bounds a single wait of an exponential backoff. Default 1 min. A longer wait asked for by
    /// [`Failure::with_retry_after`] is not cut.
    pub fn cap(mut self, longest: Duration) -> Self {
        if let Backoff::Exponential { cap, .. } = &mut self.schedule.backoff {
            *cap = longest;
        }
        self
    }

    /// No attempt starts later than this after the first one began in this process; a wait that would end later is
    /// not begun, be it one that a failure asks for. Default: unbounded.
    pub fn max_elapsed(mut self, bound: Duration) -> Self {
        self.schedule.max_elapsed = Some(bound);
        self
    }

    /// Whether each wait is a random part of the scheduled one, from nothing to all of it ("full jitter"). Default:
    /// yes for exponential waits, no for fixed ones.
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.schedule.jitter = jitter;
        self
    }

    /// Makes those transient failures permanent for which `test` is true: no further attempt, reason `permanent`.
    ///
    /// A `test` that panics makes the failure permanent, too.
    ///
    /// For errors of libraries, which come in as transient. [`Failure::find`] gets at them.
    ///
    /// ```
    /// use std::{io, time::Duration};
    /// use consumer_core::RetryLayer;
    ///
    /// let retry = RetryLayer::fixed(Duration::from_secs(5)).permanent_if(|failure| {
    ///     failure.find::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
    /// });
    /// ```
    pub fn permanent_if(mut self, test: impl Fn(&Failure) -> bool + Send + Sync + 'static) -> Self {
        self.permanent_if = Some(Arc::new(test));
        self
    }

    /// Sets the clock that tells when a message failed first. Default: the system's. Waits follow tokio's clock.
    pub fn clock(mut self, clock: impl WallClock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Counts calls under this consumer's name as `consumer_attempts_total`, for which see
    /// [`metrics`](crate::layers::metrics). Default: that of the dedup layer around it; without one nothing is counted. The recorder must be installed before the stack is built.
    #[cfg(feature = "metrics")]
    pub fn consumer(mut self, name: impl Into<Arc<str>>) -> Self {
        self.consumer = Some(name.into());
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let policy = Policy {
            schedule: self.schedule,
            permanent_if: self.permanent_if.clone(),
            clock: self.clock.clone(),
            #[cfg(feature = "metrics")]
            attempts: self.consumer.as_ref().map(crate::layers::metrics::Attempts::of),
        };
        Retry::new(inner, policy)
    }
}

impl Explain for RetryLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.retry = Some(RetryFacts {
            max_attempts: self.schedule.max_attempts,
            horizon: Some(self.schedule.horizon()),
        });
    }
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}
