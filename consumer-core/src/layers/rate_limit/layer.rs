//! Configuration of rate limits.

use std::{
    fmt,
    hash::{BuildHasher, Hash},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use tower::Layer;

use super::{
    limiter::{Limit, Limiter},
    service::{RateLimit, Shared},
};
use crate::{
    Message,
    pipeline::{Explain, Facts, RateFacts},
};

pub(super) type KeyOf = Arc<dyn Fn(&Message) -> u64 + Send + Sync>;

/// Spreads calls over time. See the [module](super) for what it guarantees.
#[derive(Clone)]
#[must_use]
pub struct RateLimitLayer {
    tokens: u32,
    period: Duration,
    burst: Option<NonZeroU32>,
    key_of: Option<KeyOf>,
}

impl RateLimitLayer {
    /// At most `calls` in a second; 0 is unlimited.
    pub fn per_second(calls: u32) -> Self {
        Self::per(calls, Duration::from_secs(1))
    }

    /// At most `calls` in each `period`; 0 calls, or a period of zero, is unlimited.
    pub fn per(calls: u32, period: Duration) -> Self {
        Self { tokens: calls, period, burst: None, key_of: None }
    }

    /// How many calls may come at once after a pause; 0 counts as 1. Default: what comes in a tenth of a second.
    pub fn burst(mut self, calls: u32) -> Self {
        self.burst = Some(NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN));
        self
    }

    /// Limits each key on its own, instead of all messages together. A message for which `key` panics fails for good.
    ///
    /// ```
    /// use consumer_core::RateLimitLayer;
    ///
    /// let per_tenant = RateLimitLayer::per_second(10).per_key(|message| message.headers().get("tenant").cloned());
    /// ```
    pub fn per_key<K: Hash>(mut self, key: impl Fn(&Message) -> K + Send + Sync + 'static) -> Self {
        // Keyed by a seeded hash: a collision, which nobody can provoke, makes two keys share a limit.
        let hasher = foldhash::quality::RandomState::default();
        self.key_of = Some(Arc::new(move |message| hasher.hash_one(key(message))));
        self
    }

    /// Limits each message key on its own. Messages without a key share one limit.
    pub fn per_message_key(self) -> Self {
        self.per_key(|message| message.key().cloned())
    }

    fn limit(&self) -> Option<Limit> {
        let tokens = NonZeroU32::new(self.tokens)?;
        (!self.period.is_zero()).then_some(Limit { tokens, period: self.period, burst: self.burst })
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let shared = self.limit().map(|limit| {
            let limiter = Limiter::new(limit, self.key_of.is_some());
            Arc::new(Shared { limiter, key_of: self.key_of.clone() })
        });
        RateLimit::new(inner, shared)
    }
}

impl Explain for RateLimitLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.rate = self.limit().map(|limit| RateFacts {
            calls: limit.tokens.get(),
            period: limit.period,
            per_key: self.key_of.is_some(),
        });
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("calls", &self.tokens)
            .field("period", &self.period)
            .field("burst", &self.burst)
            .field("per_key", &self.key_of.is_some())
            .finish()
    }
}
