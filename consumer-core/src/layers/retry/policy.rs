//! Whether and when to try again: pure functions of what happened so far.

use std::time::Duration;

use crate::{Failure, FailureKind};

/// The waits between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) backoff: Backoff,
    pub(super) jitter: bool,
    pub(super) max_attempts: u32,
    pub(super) max_elapsed: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backoff {
    Fixed(Duration),
    Exponential { base: Duration, cap: Duration },
}

impl Schedule {
    /// The longest wait after the failed attempt number `attempt`, from 1.
    pub(super) fn longest_wait(&self, attempt: u32) -> Duration {
        match self.backoff {
            Backoff::Fixed(wait) => wait,
            // Doubling stops at 2^31, which only a base below a microsecond reaches before its cap.
            Backoff::Exponential { base, cap } => {
                base.saturating_mul(1 << attempt.saturating_sub(1).min(31)).min(cap)
            }
        }
    }

    /// The wait after the failed attempt number `attempt`; `random` is uniform over all of `u64`.
    pub(super) fn wait(&self, attempt: u32, random: u64) -> Duration {
        let longest = self.longest_wait(attempt);
        if self.jitter { fraction(longest, random) } else { longest }
    }

    /// How long to wait before the next attempt, or `None` when there is none.
    ///
    /// `elapsed` is the time since the first call began; it matters only where there is a `max_elapsed`.
    pub(super) fn next(
        &self,
        failure: &Failure,
        attempt: u32,
        elapsed: Duration,
        random: u64,
    ) -> Option<Duration> {
        if !failure.is_transient() || attempt >= self.max_attempts {
            return None;
        }
        let wait = self.wait(attempt, random).max(failure.retry_after().unwrap_or(Duration::ZERO));
        match self.max_elapsed {
            Some(bound) if elapsed.saturating_add(wait) > bound => None,
            _ => Some(wait),
        }
    }

    /// The longest time that waits may take in all, from the first attempt to the last.
    pub(super) fn horizon(&self) -> Duration {
        let mut sum = Duration::ZERO;
        for attempt in 1..self.max_attempts {
            let wait = self.longest_wait(attempt);
            if wait == self.longest_wait(u32::MAX) {
                // All waits that follow are as long.
                sum = sum.saturating_add(wait.saturating_mul(self.max_attempts - attempt));
                break;
            }
            sum = sum.saturating_add(wait);
        }
        self.max_elapsed.map_or(sum, |bound| sum.min(bound))
    }
}

/// Whether a failure stands for a call that failed, rather than for a message that nobody called for.
pub(super) fn counts(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Transient | FailureKind::Permanent | FailureKind::Undecodable)
}

/// The part of `whole` that `random` is of 2^64.
fn fraction(whole: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn exponential(max_attempts: u32) -> Schedule {
        Schedule {
            backoff: Backoff::Exponential { base: SECOND, cap: 60 * SECOND },
            jitter: false,
            max_attempts,
            max_elapsed: None,
        }
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let schedule = exponential(100);
        let waits: Vec<_> = (1..=8).map(|n| schedule.wait(n, 0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(schedule.wait(u32::MAX, 0), 60 * SECOND);
    }

    #[test]
    fn full_jitter_is_anywhere_from_nothing_to_the_whole_wait() {
        let schedule = Schedule { jitter: true, ..exponential(9) };
        assert_eq!(schedule.wait(3, 0), Duration::ZERO);
        assert_eq!(schedule.wait(3, u64::MAX / 2 + 1), 2 * SECOND);
        let most = schedule.wait(3, u64::MAX);
        assert!(most > 3 * SECOND && most <= 4 * SECOND, "{most:?}");
    }

    #[test]
    fn only_transient_failures_below_the_bound_are_tried_again() {
        let schedule = exponential(3);
        let next = |failure: Failure, attempt| schedule.next(&failure, attempt, Duration::ZERO, 0);
        assert_eq!(next(Failure::transient("x"), 2), Some(2 * SECOND));
        assert_eq!(next(Failure::transient("x"), 3), None);
        assert_eq!(next(Failure::transient("x"), 7), None);
        assert_eq!(next(Failure::permanent("x"), 1), None);
        assert_eq!(next(Failure::undecodable("x"), 1), None);
        assert_eq!(next(Failure::cancelled("x"), 1), None);
    }

    #[test]
    fn retry_after_is_the_least_wait_and_no_attempt_starts_past_max_elapsed() {
        let schedule = Schedule { max_elapsed: Some(10 * SECOND), ..exponential(9) };
        let next = |after: u32, elapsed: u32| {
            let failure = Failure::transient("x").with_retry_after(after * SECOND);
            schedule.next(&failure, 2, elapsed * SECOND, 0)
        };
        assert_eq!(next(1, 0), Some(2 * SECOND));
        assert_eq!(next(7, 0), Some(7 * SECOND));
        assert_eq!(next(7, 3), Some(7 * SECOND));
        assert_eq!(next(7, 4), None);
        assert_eq!(next(1, 9), None);
    }

    #[test]
    fn the_horizon_sums_the_longest_waits() {
        assert_eq!(exponential(1).horizon(), Duration::ZERO);
        assert_eq!(exponential(4).horizon(), 7 * SECOND);
        assert_eq!(exponential(9).horizon(), (63 + 60 + 60) * SECOND);
        assert!(exponential(u32::MAX).horizon() > 1_000_000 * SECOND);
        let bounded = Schedule { max_elapsed: Some(5 * SECOND), ..exponential(9) };
        assert_eq!(bounded.horizon(), 5 * SECOND);
    }

    #[test]
    fn failures_without_a_call_count_nothing() {
        assert!(counts(FailureKind::Undecodable));
        assert!(
            !counts(FailureKind::Cancelled) && !counts(FailureKind::Conflict) && !counts(FailureKind::NoKey)
        );
    }
}
