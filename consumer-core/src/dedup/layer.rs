//! The dedup layer: its configuration.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tower::Layer;

use super::{
    DedupStore, DynStore, Gate, IdempotencyKey, MissingKey, fingerprint,
    meter::Meter,
    registry::Registry,
    service::{Dedup, Shared},
};
use crate::{
    Failure, Message, closure,
    layers::delayed_retry::Parking,
    pipeline::{DedupFacts, Explain, Facts},
    time::LONGEST,
};

/// Lets the effect of each idempotency key happen once: claim → handler → complete → ack.
///
/// # What it guarantees
/// At-least-once; each key's handler completes once unless a process dies between the side effect and `complete`, or
/// the store is away between the two for longer than the lease, a handler outlives its lease, an attempt that failed or
/// timed out had its effect all the same, the store loses state, or a duplicate comes after the retention.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`key`](Self::key) | the message id | what publishers stamp |
/// | [`retention`](Self::retention) | 24 h | longer than the usual way back; check yours |
/// | [`lease`](Self::lease) | 30 s | how long a dead process holds up its messages |
/// | [`grace`](Self::grace) | 1 h | a crash has to be seen as one; never below the redelivery time of the source |
/// | [`max_crashes`](Self::max_crashes) | 3 | a message that kills the process is set aside |
/// | [`missing_key`](Self::missing_key) | reject | no effect without protection |
/// | [`on_outage`](Self::on_outage) | wait | the same |
/// | [`fingerprint`](Self::fingerprint) | the payload | another payload under a known id is an error, not a duplicate |
///
/// # The cost of a crash
/// After a process was killed, each of the messages it had in flight runs alone the first time it comes back: up to
/// `max_in_flight` messages, one by one.
#[derive(Clone)]
#[must_use]
pub struct DedupLayer<D> {
    store: D,
    config: Config,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) consumer: Arc<str>,
    pub(super) key: IdempotencyKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) retention: Duration,
    pub(super) lease: Duration,
    pub(super) grace: Duration,
    pub(super) max_crashes: u32,
    pub(super) missing_key: MissingKey,
    pub(super) on_outage: OnOutage,
    process: u128,
    gate: Gate,
}

/// What tells a duplicate from another message under the same idempotency key.
#[derive(Clone)]
pub struct Fingerprint(What);

type FingerprintFn = dyn Fn(&Message) -> Option<u128> + Send + Sync;

#[derive(Clone)]
enum What {
    Payload,
    None,
    Closure(Arc<FingerprintFn>),
}

/// What happens to messages while the store cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOutage {
    /// The source is paused; what is held waits.
    #[default]
    Wait,
    /// Messages are handled without protection, which is counted: duplicates take effect again, also those of a message
    /// that is being handled in this process. A store that is known to be down is not asked at all, and a message whose
    /// handler has succeeded does not wait for its record: that is made when the store comes back.
    Bypass,
}

impl<D: DedupStore> DedupLayer<D> {
    /// Deduplicates in `store` for the logical consumer `consumer`: consumers with other names are independent of it.
    pub fn new(store: D, consumer: impl Into<Arc<str>>) -> Self {
        let hour = Duration::from_secs(3600);
        let config = Config {
            consumer: consumer.into(),
            key: IdempotencyKey::default(),
            fingerprint: Fingerprint::payload(),
            retention: 24 * hour,
            lease: Duration::from_secs(30),
            grace: hour,
            max_crashes: 3,
            missing_key: MissingKey::default(),
            on_outage: OnOutage::default(),
            process: process_nonce(),
            gate: Gate::process_wide(),
        };
        Self { store, config }
    }

    /// Sets where the idempotency key comes from.
    pub fn key(mut self, key: IdempotencyKey) -> Self {
        self.config.key = key;
        self
    }

    /// Sets how long a completed key is remembered. It has to exceed the longest way back of a message: retries,
    /// redrives, what the broker keeps.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.config.retention = retention.min(LONGEST);
        self
    }

    /// Sets how long a claim holds when it is not renewed; at least 10 ms. Renewals go out at half of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease.clamp(Duration::from_millis(10), LONGEST);
        self
    }

    /// Sets how long the record of an expired claim is kept.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.config.grace = grace.min(LONGEST);
        self
    }

    /// Sets after how many deaths of a process that ran the message alone it is given up; at least 1.
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.config.max_crashes = crashes.max(1);
        self
    }

    /// Sets what becomes of a message without a key.
    pub fn missing_key(mut self, policy: MissingKey) -> Self {
        self.config.missing_key = policy;
        self
    }

    /// Sets what happens while the store cannot be reached.
    pub fn on_outage(mut self, policy: OnOutage) -> Self {
        self.config.on_outage = policy;
        self
    }

    /// Takes the fingerprint from a closure, for payloads that differ in what does not matter. Where it panics the
    /// message fails for good.
    pub fn fingerprint(mut self, f: impl Fn(&Message) -> Option<u128> + Send + Sync + 'static) -> Self {
        self.config.fingerprint = Fingerprint::from_fn(f);
        self
    }

    /// Takes no fingerprint: another payload under a known id passes for a duplicate, and a corrected resend of a
    /// dead-lettered message too.
    pub fn no_fingerprint(mut self) -> Self {
        self.config.fingerprint = Fingerprint::none();
        self
    }

    /// The parking policy for [`DelayedRetryLayer::parking`](crate::DelayedRetryLayer::parking), with the store, the
    /// consumer, the key, the fingerprint, the retention and what happens in an outage as this layer has them now: set
    /// those first.
    pub fn parking(&self) -> Parking
    where
        D: DedupStore,
    {
        let config = &self.config;
        let store = DynStore::new(self.store.clone());
        Parking::new(store, config.consumer.clone(), config.key.clone(), config.retention)
            .fingerprint(config.fingerprint.clone())
            .bypass(config.on_outage == OnOutage::Bypass)
    }

    /// Uses another gate than the process's own, and counts as another process with this nonce. For tests that play
    /// several processes in one.
    pub fn as_process(mut self, nonce: u128, gate: Gate) -> Self {
        self.config.process = nonce;
        self.config.gate = gate;
        self
    }
}

/// Random, one for each process.
fn process_nonce() -> u128 {
    static NONCE: OnceLock<u128> = OnceLock::new();
    *NONCE.get_or_init(|| uuid::Uuid::new_v4().as_u128())
}

impl<S, D: DedupStore> Layer<S> for DedupLayer<D> {
    type Service = Dedup<S, D>;

    fn layer(&self, inner: S) -> Dedup<S, D> {
        let config = self.config.clone();
        let meter = Meter::new(&config.consumer);
        let registry = Registry::new(
            config.process,
            DynStore::new(self.store.clone()),
            config.gate.clone(),
            config.retention,
            meter.clone(),
        );
        let shared =
            Shared { store: self.store.clone(), registry, meter, seen_run: AtomicU64::new(0), config };
        Dedup { inner, shared: Arc::new(shared) }
    }
}

impl<D: DedupStore> Explain for DedupLayer<D> {
    fn explain(&self, facts: &mut Facts) {
        let config = &self.config;
        facts.dedup = Some(DedupFacts {
            consumer: config.consumer.to_string(),
            key: config.key.to_string(),
            retention: config.retention,
            lease: config.lease,
            bypass_on_outage: config.on_outage == OnOutage::Bypass,
            process_without_key: config.missing_key == MissingKey::Process,
            fingerprint: !config.fingerprint.is_none(),
            survives_restart: self.store.survives_restart(),
        });
    }
}

impl Fingerprint {
    /// The hash of the payload ([`fingerprint`]).
    pub fn payload() -> Self {
        Self(What::Payload)
    }

    /// None: another payload under a known key passes for a duplicate.
    pub fn none() -> Self {
        Self(What::None)
    }

    /// Whatever the closure makes of the message. Where it panics the message fails for good.
    pub fn from_fn(f: impl Fn(&Message) -> Option<u128> + Send + Sync + 'static) -> Self {
        Self(What::Closure(Arc::new(f)))
    }

    /// Whether no message has one.
    pub fn is_none(&self) -> bool {
        matches!(self.0, What::None)
    }

    /// The fingerprint of a message.
    ///
    /// # Errors
    /// When the closure panics. Trying again finds the same.
    pub fn of(&self, message: &Message) -> Result<Option<u128>, Failure> {
        match &self.0 {
            What::Payload => Ok(Some(fingerprint(message.payload()))),
            What::None => Ok(None),
            What::Closure(f) => closure::call("the fingerprint", || f(message)),
        }
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            What::Payload => "Fingerprint(payload)",
            What::None => "Fingerprint(none)",
            What::Closure(_) => "Fingerprint(closure)",
        })
    }
}

impl<D> Shared<D> {
    /// The run learns once which store to flush at its end.
    pub(super) fn register(&self, message: &Message)
    where
        D: DedupStore,
    {
        if let Some(scope) = message.scope() {
            let run = scope.run();
            if self.seen_run.load(Ordering::Relaxed) != run.id()
                && self.seen_run.swap(run.id(), Ordering::Relaxed) != run.id()
            {
                run.register(&self.registry);
            }
        }
    }
}

impl<D> fmt::Debug for DedupLayer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedupLayer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("consumer", &self.consumer)
            .field("key", &self.key)
            .field("retention", &self.retention)
            .field("lease", &self.lease)
            .field("grace", &self.grace)
            .field("max_crashes", &self.max_crashes)
            .field("missing_key", &self.missing_key)
            .field("on_outage", &self.on_outage)
            .finish_non_exhaustive()
    }
}
