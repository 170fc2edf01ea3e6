//! Tokens, and the queues of those who wait for one.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed, keyed::HashMapStateStore},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use super::clock::{TokioClock, TokioInstant};

type Rate<K, S> = RateLimiter<K, S, TokioClock, NoOpMiddleware<TokioInstant>>;

/// Keys are looked through for stale ones after so many tokens at the earliest.
const SWEEP_AT_LEAST: usize = 1024;

/// How much may pass: `tokens` in each `period`, and `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) tokens: NonZeroU32,
    pub(super) period: Duration,
    pub(super) burst: Option<NonZeroU32>,
}

impl Limit {
    /// The burst that was set, or a tenth of a second's tokens.
    pub(super) fn burst(&self) -> NonZeroU32 {
        self.burst.unwrap_or_else(|| {
            let tenth = f64::from(self.tokens.get()) * 0.1 / self.period.as_secs_f64().max(1e-9);
            // The cast saturates.
            NonZeroU32::new(tenth as u32).unwrap_or(NonZeroU32::MIN)
        })
    }

    fn quota(&self) -> Quota {
        let each = (self.period / self.tokens.get()).max(Duration::from_nanos(1));
        // Only a zero duration has no quota.
        Quota::with_period(each).unwrap_or(Quota::per_second(self.tokens)).allow_burst(self.burst())
    }
}

pub(super) struct Limiter {
    tokens: Tokens,
    /// Waiters in all queues: while there are none, nobody looks at the queues.
    waiting: AtomicUsize,
    queues: Mutex<HashMap<u64, Queue>>,
}

enum Tokens {
    Global(Rate<NotKeyed, InMemoryState>),
    Keyed { rate: Rate<u64, HashMapStateStore<u64>>, until_sweep: AtomicUsize },
}

/// Those who wait under one key. Only its head sleeps, so that a token wakes one of them and not all.
struct Queue {
    turn: Arc<Semaphore>,
    waiters: usize,
}

impl Limiter {
    pub(super) fn new(limit: Limit, keyed: bool) -> Self {
        let tokens = if keyed {
            let state = HashMapStateStore::default();
            let rate = RateLimiter::new(limit.quota(), state, TokioClock);
            Tokens::Keyed { rate, until_sweep: AtomicUsize::new(SWEEP_AT_LEAST) }
        } else {
            Tokens::Global(RateLimiter::direct_with_clock(limit.quota(), TokioClock))
        };
        Self { tokens, waiting: AtomicUsize::new(0), queues: Mutex::default() }
    }

    /// Takes a token, unless there is none or others wait for one.
    pub(super) fn try_take(&self, key: u64) -> bool {
        if self.waiting.load(Ordering::Relaxed) > 0 && self.queues().contains_key(&key) {
            return false;
        }
        self.check(key).is_ok()
    }

    /// Waits for a token behind those who wait already.
    pub(super) async fn take(&self, key: u64) {
        let place = Place::take(self, key);
        // The semaphore is never closed.
        let _turn = place.turn.acquire().await;
        while let Err(until) = self.check(key) {
            sleep_until(until).await;
        }
    }

    /// Takes a token, or tells when there will be one.
    fn check(&self, key: u64) -> Result<(), Instant> {
        match &self.tokens {
            Tokens::Global(rate) => rate.check().map_err(|not| not.earliest_possible().0),
            Tokens::Keyed { rate, until_sweep } => {
                if until_sweep.fetch_sub(1, Ordering::Relaxed) == 1 {
                    // The next sweep comes after as many tokens as keys stay: the cost of a token stays constant.
                    rate.retain_recent();
                    rate.shrink_to_fit();
                    until_sweep.store(rate.len().max(SWEEP_AT_LEAST), Ordering::Relaxed);
                }
                rate.check_key(&key).map_err(|not| not.earliest_possible().0)
            }
        }
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<u64, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        match &self.tokens {
            Tokens::Global(_) => 1,
            Tokens::Keyed { rate, .. } => rate.len(),
        }
    }

    #[cfg(test)]
    pub(super) fn queued_keys(&self) -> usize {
        self.queues().len()
    }
}

/// A place in a queue, until dropped.
struct Place<'a> {
    limiter: &'a Limiter,
    key: u64,
    turn: Arc<Semaphore>,
}

impl<'a> Place<'a> {
    fn take(limiter: &'a Limiter, key: u64) -> Self {
        let mut queues = limiter.queues();
        let queue =
            queues.entry(key).or_insert_with(|| Queue { turn: Arc::new(Semaphore::new(1)), waiters: 0 });
        queue.waiters += 1;
        limiter.waiting.fetch_add(1, Ordering::Relaxed);
        Self { limiter, key, turn: queue.turn.clone() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.limiter.queues();
        self.limiter.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.waiters -= 1;
            if queue.waiters == 0 {
                queues.remove(&self.key);
            }
        }
    }
}
