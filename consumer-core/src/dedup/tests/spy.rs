//! A store that counts and that answers late. What it is asked happens at once, as the contract demands.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    task::Context,
};

use super::*;

#[derive(Clone, Default)]
pub(super) struct Spy {
    pub(super) memory: MemoryStore,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    renew_calls: AtomicUsize,
    flushes: AtomicUsize,
    claim_delay_ms: AtomicU64,
    all_delay_ms: AtomicU64,
    killed: AtomicBool,
}

impl Spy {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The line of another process to the same store.
    #[cfg(feature = "rate-limit")]
    pub(super) fn beside(&self) -> Self {
        Self { memory: self.memory.clone(), counts: Arc::default() }
    }

    /// The process is dead: nothing that it asks for happens any more.
    #[cfg(feature = "rate-limit")]
    pub(super) fn kill(&self) {
        self.counts.killed.store(true, SeqCst);
    }

    fn alive<T: 'static, F>(&self, ask: impl FnOnce() -> F) -> Pin<Box<dyn Future<Output = T> + Send>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        match self.counts.killed.load(SeqCst) {
            true => Box::pin(std::future::pending()),
            false => Box::pin(ask()),
        }
    }

    /// Answers to claims come so late.
    pub(super) fn delay_claims(&self, delay: Duration) {
        self.counts.claim_delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// Every answer comes so late, at least.
    pub(super) fn delay_all(&self, delay: Duration) {
        self.counts.all_delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    pub(super) fn renew_calls(&self) -> usize {
        self.counts.renew_calls.load(SeqCst)
    }

    pub(super) fn flushes(&self) -> usize {
        self.counts.flushes.load(SeqCst)
    }

    pub(super) fn state(&self, id: &str) -> State {
        self.memory.state(&key(id))
    }

    fn delay(&self) -> u64 {
        self.counts.all_delay_ms.load(SeqCst)
    }
}

async fn late<T>(millis: u64, answer: impl Future<Output = T> + Send + 'static) -> T {
    if millis > 0 {
        sleep(Duration::from_millis(millis)).await;
    }
    answer.await
}

impl DedupStore for Spy {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        let delay = self.delay().max(self.counts.claim_delay_ms.load(SeqCst));
        late(delay, self.alive(|| self.memory.claim(request)))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        late(self.delay(), self.alive(|| self.memory.resolve(claim, resolution, lifetime)))
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.counts.renew_calls.fetch_add(1, SeqCst);
        late(self.delay(), self.alive(|| self.memory.renew(requests)))
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        late(self.delay(), self.alive(|| self.memory.park(request)))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.counts.flushes.fetch_add(1, SeqCst);
        late(self.delay(), self.memory.flush())
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.memory.poll_available(cx)
    }
}
