//! How long to wait before connecting again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles from 200 ms to 10 s; each wait is at least half of that and at most all of it, so that the clients of a broker
/// that comes back do not return as one.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + whole.mul_f64(random() / 2.0)
    }

    /// The connection had lasted for `up`: only one that did is no failure.
    pub(crate) fn lasted(&mut self, up: Duration) {
        if up >= LONGEST {
            self.failures = 0;
        }
    }
}

/// A number from 0 to 1 without a dependency on a generator: for jitter it is good enough.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_is_capped_and_jittered() {
        let mut backoff = Backoff::default();
        for whole in [200_u64, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            let whole = Duration::from_millis(whole);
            let wait = backoff.next();
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
        }
        let waits: std::collections::HashSet<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits.len() > 1);
    }

    #[test]
    fn a_connection_that_breaks_at_once_counts_as_a_failure() {
        let mut backoff = Backoff { failures: 9 };
        backoff.lasted(Duration::from_secs(1));
        assert_eq!(backoff.failures, 9);
        backoff.lasted(LONGEST);
        assert_eq!(backoff.failures, 0);
    }
}
