//! The line of one process to the store, which is cut when the process is killed.

use std::{
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal,
        Resolution, Resolved, StoreError,
    },
    memory::MemoryStore,
};

#[derive(Clone)]
pub(crate) struct Severed {
    store: MemoryStore,
    dead: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    overlaps: Arc<AtomicUsize>,
}

impl Severed {
    pub(crate) fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), dead: Arc::default(), stalled: Arc::default(), overlaps: Arc::default() }
    }

    /// Nothing reaches the store any more, and nothing is answered.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Claims and renewals do not reach the store: the process is stalled, or cut off while it works.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    fn is_cut_off(&self) -> bool {
        self.dead.load(Ordering::SeqCst) || self.stalled.load(Ordering::SeqCst)
    }

    /// How often the store has answered that a success overlapped with another owner.
    pub(crate) fn overlaps(&self) -> usize {
        self.overlaps.load(Ordering::SeqCst)
    }
}

/// The operation happens by the call, unless the line is cut; then it never happens and is never answered.
fn through<F: Future + Send + 'static>(
    cut: bool,
    operation: impl FnOnce() -> F,
) -> impl Future<Output = F::Output> + Send + 'static {
    let answer = (!cut).then(operation);
    async move {
        match answer {
            Some(answer) => answer.await,
            None => pending().await,
        }
    }
}

impl DedupStore for Severed {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.is_cut_off(), move || store.claim(request))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        let overlaps = self.overlaps.clone();
        let resolved =
            through(self.dead.load(Ordering::SeqCst), move || store.resolve(claim, resolution, lifetime));
        async move {
            let resolved = resolved.await;
            overlaps.fetch_add(usize::from(matches!(resolved, Ok(Resolved::Overlapped))), Ordering::SeqCst);
            resolved
        }
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.is_cut_off(), move || store.renew(requests))
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.is_cut_off(), move || store.park(request))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.dead.load(Ordering::SeqCst), move || store.flush())
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.store.poll_available(cx)
    }
}
