//! The dedup store in memory.

use std::{
    fmt,
    future::{Future, ready},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::Either;
use tokio::sync::oneshot;

use super::{clock::Clock, records::Records};
use crate::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution,
    Resolved, StoreError, StoreKey,
    protocol::{Operation, Reply, State},
};

const SHARDS: usize = 16;

/// Keeps the state of idempotency keys in this process.
///
/// Clones share one state. Every operation happens within the call. The clock is the wall clock at creation, moved on
/// by tokio's, so a paused clock rules leases and lifetimes. There is no bound on the number of keys: each stays
/// until its retention ends, at 50 to 90 bytes once completed, and expired ones are swept as new ones come.
///
/// For tests it can misbehave on request: [`set_down`](Self::set_down), [`lose_replies`](Self::lose_replies),
/// [`fail_resolves`](Self::fail_resolves), [`forget`](Self::forget), [`expire_claims`](Self::expire_claims).
///
/// ```
/// use consumer_core::dedup::{StoreKey, protocol::State};
/// use consumer_core::memory::MemoryStore;
///
/// let store = MemoryStore::new();
/// let key = StoreKey::new("order-mails".into(), "o-17".into());
/// assert_eq!(store.state(&key), State::Absent);
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

/// How many operations a [`MemoryStore`] has applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Claims asked for, whatever was answered.
    pub claims: u64,
    /// Resolutions.
    pub resolves: u64,
    /// Claims that were asked to be prolonged.
    pub renewals: u64,
    /// What was asked of the lists of parked messages.
    pub parks: u64,
}

struct Inner {
    clock: Clock,
    shards: [Shard; SHARDS],
    /// Whether anything in `faults` is to be heeded: the only thing an operation looks at without faults.
    faulty: AtomicBool,
    faults: Mutex<Faults>,
}

/// A part of the keys, on its own cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Records>);

#[derive(Default)]
struct Faults {
    down: bool,
    lost_replies: usize,
    failed_resolves: usize,
    kept: Vec<Kept>,
    flushing: Vec<oneshot::Sender<()>>,
    waiting: Vec<Waker>,
}

/// A resolution that waits for the end of an outage.
struct Kept {
    claim: Claim,
    resolution: Resolution,
    lifetime: Duration,
    answer: oneshot::Sender<Resolved>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let inner = Inner {
            clock: Clock::new(),
            shards: Default::default(),
            faulty: AtomicBool::new(false),
            faults: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What the store knows of a key now.
    pub fn state(&self, key: &StoreKey) -> State {
        let now = self.inner.clock.millis();
        self.inner.records(key.hash()).state(key.hash(), now)
    }

    /// Which messages of a message key wait now: the hashes of their idempotency keys, in their order.
    pub fn parked(&self, key: &StoreKey) -> Vec<u128> {
        let now = self.inner.clock.millis();
        self.inner.records(key.hash()).parked(key.hash(), now)
    }

    /// How many operations were applied; those refused during an outage are not.
    pub fn stats(&self) -> StoreStats {
        let mut sum = StoreStats::default();
        for shard in &self.inner.shards {
            let stats = lock(&shard.0).stats;
            sum.claims += stats.claims;
            sum.resolves += stats.resolves;
            sum.renewals += stats.renewals;
            sum.parks += stats.parks;
        }
        sum
    }

    /// The number of idempotency keys it holds, expired ones that are not swept yet included.
    pub fn len(&self) -> usize {
        self.inner.shards.iter().map(|shard| lock(&shard.0).len()).sum()
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts or ends an outage.
    ///
    /// Meanwhile claims and renewals are refused without being applied, resolutions are kept and applied in their
    /// order when it ends, and [`poll_available`](DedupStore::poll_available) is pending.
    pub fn set_down(&self, down: bool) {
        let mut faults = self.inner.faults();
        faults.down = down;
        if down {
            self.inner.faulty.store(true, Ordering::Release);
            return;
        }
        for kept in std::mem::take(&mut faults.kept) {
            let resolved = self.inner.resolve(&kept.claim, kept.resolution, kept.lifetime);
            if let Ok(resolved) = resolved {
                // The answer may not be waited for any more.
                let _ = kept.answer.send(resolved);
            }
        }
        let flushing = std::mem::take(&mut faults.flushing);
        let waiting = std::mem::take(&mut faults.waiting);
        self.inner.settle_flag(&faults);
        drop(faults);
        for flush in flushing {
            let _ = flush.send(());
        }
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The next `n` claims are applied and answered with an error, as when the reply is lost on its way.
    pub fn lose_replies(&self, n: usize) {
        let mut faults = self.inner.faults();
        faults.lost_replies = n;
        self.inner.settle_flag(&faults);
    }

    /// The next `n` resolutions are answered with an error and not applied, as by a store that has given up for good.
    pub fn fail_resolves(&self, n: usize) {
        let mut faults = self.inner.faults();
        faults.failed_resolves = n;
        self.inner.settle_flag(&faults);
    }

    /// Loses the record of a key, as an eviction or a failover does.
    pub fn forget(&self, key: &StoreKey) {
        self.inner.records(key.hash()).forget(key.hash());
    }

    /// Ends the lease of every claim now, as a long stall of all owners does. The records stay.
    pub fn expire_claims(&self) {
        let now = self.inner.clock.millis();
        for shard in &self.inner.shards {
            lock(&shard.0).expire_claims(now);
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl DedupStore for MemoryStore {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        if self.inner.faulty.load(Ordering::Acquire) {
            let mut faults = self.inner.faults();
            if faults.down {
                return ready(Err(down()));
            }
            if faults.lost_replies > 0 {
                faults.lost_replies -= 1;
                self.inner.settle_flag(&faults);
                drop(faults);
                let lost = self.inner.claim(&request);
                return ready(lost.and(Err(StoreError::new("memory store: the reply to a claim was lost"))));
            }
        }
        ready(self.inner.claim(&request))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        if self.inner.faulty.load(Ordering::Acquire) {
            let mut faults = self.inner.faults();
            if faults.down {
                let (answer, answered) = oneshot::channel();
                faults.kept.push(Kept { claim, resolution, lifetime, answer });
                return Either::Right(async move { answered.await.map_err(|_| gone()) });
            }
            if faults.failed_resolves > 0 {
                faults.failed_resolves -= 1;
                self.inner.settle_flag(&faults);
                return Either::Left(ready(Err(StoreError::new("memory store: told to give up"))));
            }
        }
        Either::Left(ready(self.inner.resolve(&claim, resolution, lifetime)))
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        if self.inner.faulty.load(Ordering::Acquire) && self.inner.faults().down {
            return ready(Err(down()));
        }
        ready(requests.iter().map(|request| self.inner.renew(request)).collect())
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        if self.inner.faulty.load(Ordering::Acquire) && self.inner.faults().down {
            return ready(Err(down()));
        }
        ready(Ok(self.inner.park(&request)))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        if self.inner.faulty.load(Ordering::Acquire) {
            let mut faults = self.inner.faults();
            if !faults.kept.is_empty() {
                let (answer, answered) = oneshot::channel();
                faults.flushing.push(answer);
                return Either::Right(async move { answered.await.map_err(|_| gone()) });
            }
        }
        Either::Left(ready(Ok(())))
    }

    fn survives_restart(&self) -> bool {
        false
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.inner.faulty.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut faults = self.inner.faults();
        if !faults.down {
            return Poll::Ready(());
        }
        if !faults.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            faults.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

fn down() -> StoreError {
    StoreError::new("memory store: told to be down")
}

fn gone() -> StoreError {
    StoreError::new("memory store: dropped during an outage")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn records(&self, hash: u128) -> MutexGuard<'_, Records> {
        // The map within the shard hashes the whole key again, so any bits will do here.
        lock(&self.shards[(hash as usize) % SHARDS].0)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    fn settle_flag(&self, faults: &Faults) {
        let faulty = faults.down || faults.lost_replies > 0 || faults.failed_resolves > 0;
        self.faulty.store(faulty, Ordering::Release);
    }

    fn claim(&self, request: &ClaimRequest) -> Result<ClaimReply, StoreError> {
        let now = self.clock.millis();
        let mut records = self.records(request.key.hash());
        records.stats.claims += 1;
        match records.apply(request.key.hash(), &Operation::Claim(request), now) {
            Reply::Claim(reply) => Ok(reply),
            other => Err(mismatch(&other)),
        }
    }

    fn resolve(
        &self,
        claim: &Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> Result<Resolved, StoreError> {
        let now = self.clock.millis();
        let mut records = self.records(claim.key.hash());
        records.stats.resolves += 1;
        match records.apply(claim.key.hash(), &Operation::Resolve(claim, resolution, lifetime), now) {
            Reply::Resolve(resolved) => Ok(resolved),
            other => Err(mismatch(&other)),
        }
    }

    fn renew(&self, request: &RenewRequest) -> Result<Renewal, StoreError> {
        let now = self.clock.millis();
        let mut records = self.records(request.claim.key.hash());
        records.stats.renewals += 1;
        match records.apply(request.claim.key.hash(), &Operation::Renew(request), now) {
            Reply::Renew(renewal) => Ok(renewal),
            other => Err(mismatch(&other)),
        }
    }

    fn park(&self, request: &ParkRequest) -> ParkReply {
        let now = self.clock.millis();
        let mut records = self.records(request.key.hash());
        records.stats.parks += 1;
        records.park(request, now)
    }
}

fn mismatch(reply: &Reply) -> StoreError {
    StoreError::new(format!("memory store: {reply:?} is no answer to what was asked"))
}
