//! The completions of the last moments, for a server that may have lost them.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consumer_core::dedup::StoreKey;
use redis::Cmd;
use tokio::time::Instant;

use crate::operation;

/// How much a server may lose without its clients noticing: a replica lags behind by less.
const WINDOW: Duration = Duration::from_secs(2);
/// About 6 MiB. At a rate where this is less than the window, the window is shorter.
const LIMIT: usize = 65_536;

#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    completions: VecDeque<Completion>,
    /// When the server was last well: an outage does not make what came before it older.
    heard: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Completion {
    key: u128,
    fingerprint: Option<u128>,
    at: Instant,
    lifetime: Duration,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were recorded. If the server is `well`, what came long before has reached its replica by now.
    pub(crate) fn heard<'a>(
        &self,
        now: Instant,
        well: bool,
        completions: impl Iterator<Item = (&'a StoreKey, Option<u128>, Duration)>,
    ) {
        let mut inner = self.lock();
        for (key, fingerprint, lifetime) in completions {
            inner.completions.push_back(Completion { key: key.hash(), fingerprint, at: now, lifetime });
        }
        // In an outage of a part, what came before it is what that part may have lost: the newer ones go first.
        let frozen = match inner.heard.filter(|_| !well) {
            Some(heard) => inner.completions.partition_point(|completion| completion.at <= heard),
            None => 0,
        };
        let over = inner.completions.len().saturating_sub(LIMIT);
        let first = frozen.min(inner.completions.len() - over);
        inner.completions.drain(first..first + over);
        if well {
            inner.heard = Some(now);
            inner.forget(now);
        }
    }

    /// Commands that record once more what may have been lost, for what is left of its lifetime.
    pub(crate) fn again(&self, now: Instant, prefix: &[u8]) -> Vec<Cmd> {
        let mut inner = self.lock();
        if let Some(heard) = inner.heard {
            inner.forget(heard);
        }
        let left =
            |completion: &Completion| completion.lifetime.checked_sub(now.duration_since(completion.at));
        let live = inner.completions.iter().filter_map(|completion| Some((completion, left(completion)?)));
        live.map(|(completion, left)| {
            operation::completion(completion.key, completion.fingerprint, left, false, prefix)
        })
        .collect()
    }
}

impl Inner {
    fn forget(&mut self, now: Instant) {
        while self.completions.front().is_some_and(|first| now.duration_since(first.at) > WINDOW) {
            self.completions.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_completed_before_an_outage_is_kept_through_it() {
        let recent = Recent::default();
        let start = Instant::now();
        let key = |name: &'static str| StoreKey::new("scope".into(), name.into());
        let hour = Duration::from_secs(3600);
        recent.heard(start, true, [(&key("old"), None, hour)].into_iter());
        recent.heard(
            start + Duration::from_secs(2),
            true,
            [(&key("short"), Some(1), Duration::from_secs(5))].into_iter(),
        );
        recent.heard(start + Duration::from_secs(3), true, [(&key("last"), Some(2), hour)].into_iter());
        recent.heard(start + Duration::from_secs(60), false, std::iter::empty());
        assert_eq!(recent.again(start + Duration::from_secs(4), b"p:").len(), 2);
        let again = recent.again(start + Duration::from_secs(603), b"p:");
        let [command] = &again[..] else { panic!("the expired one is not recorded again") };
        let packed = command.get_packed_command();
        let contains = |part: &[u8]| packed.windows(part.len()).any(|window| window == part);
        assert!(contains(&key("last").hash().to_be_bytes()));
        assert!(contains(b"\r\n3000000\r\n"));
    }

    /// One node is away, and the others go on: what it may have lost must not make room for what they record.
    #[tokio::test(start_paused = true)]
    async fn what_a_lost_node_may_need_is_kept_while_others_go_on() {
        let recent = Recent::default();
        let (before, after) =
            (StoreKey::new("scope".into(), "before".into()), StoreKey::new("scope".into(), "after".into()));
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        recent.heard(now, true, [(&before, None, hour)].into_iter());
        let later = now + Duration::from_secs(1);
        recent.heard(later, false, (0..LIMIT + 10).map(|_| (&after, None, hour)));
        let inner = recent.lock();
        assert_eq!((inner.completions.len(), inner.completions[0].key), (LIMIT, before.hash()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_kept_is_bounded() {
        let recent = Recent::default();
        let key = StoreKey::new("scope".into(), "key".into());
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        recent.heard(now, true, (0..LIMIT + 10).map(|_| (&key, None, hour)));
        assert_eq!(recent.lock().completions.len(), LIMIT);
    }
}
