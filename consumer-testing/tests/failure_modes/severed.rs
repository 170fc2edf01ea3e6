//! The line of one process to the store, which is cut when the process is killed.

use std::{
    future::{Future, pending},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{
    Outgoing, PublishError, Publisher,
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal,
        Resolution, Resolved, StoreError,
    },
    memory::{CrashHandle, MemoryPublisher, MemoryStore},
};

#[derive(Clone)]
pub(crate) struct Severed {
    store: MemoryStore,
    dead: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    overlaps: Arc<AtomicUsize>,
    fuse: Arc<Mutex<Option<Fuse>>>,
}

/// Ends the process after so many steps.
struct Fuse {
    steps: usize,
    applied: bool,
    crash: CrashHandle,
}

/// How far an operation gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// It happens, and is never answered.
    NoAnswer,
    Cut,
}

impl Severed {
    pub(crate) fn new(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            dead: Arc::default(),
            stalled: Arc::default(),
            overlaps: Arc::default(),
            fuse: Arc::default(),
        }
    }

    /// Nothing reaches the store any more, and nothing is answered.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Claims and renewals do not reach the store: the process is stalled, or cut off while it works.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Kills the process after so many further steps. The last one is applied or not, and not answered.
    pub(crate) fn burn(&self, steps: usize, applied: bool, crash: CrashHandle) {
        *self.fuse.lock().unwrap() = Some(Fuse { steps, applied, crash });
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// What the process publishes goes over the same line.
    pub(crate) fn publisher(&self, publisher: MemoryPublisher) -> SeveredPublisher {
        SeveredPublisher { line: self.clone(), publisher }
    }

    fn way(&self, cut_in_a_stall: bool) -> Way {
        if self.is_dead() || (cut_in_a_stall && self.stalled.load(Ordering::SeqCst)) {
            return Way::Cut;
        }
        let mut fuse = self.fuse.lock().unwrap();
        let Some(burning) = &mut *fuse else { return Way::Open };
        if burning.steps > 0 {
            burning.steps -= 1;
            return Way::Open;
        }
        let way = if burning.applied { Way::NoAnswer } else { Way::Cut };
        self.kill();
        burning.crash.crash();
        *fuse = None;
        way
    }

    /// How often the store has answered that a success overlapped with another owner.
    pub(crate) fn overlaps(&self) -> usize {
        self.overlaps.load(Ordering::SeqCst)
    }
}

/// The operation happens by the call, unless the line is cut; then it never happens and is never answered.
fn through<F: Future + Send + 'static>(
    way: Way,
    operation: impl FnOnce() -> F,
) -> impl Future<Output = F::Output> + Send + 'static {
    let answer = (way != Way::Cut).then(operation);
    async move {
        match answer {
            Some(answer) if way == Way::Open => answer.await,
            _ => pending().await,
        }
    }
}

impl DedupStore for Severed {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.way(true), move || store.claim(request))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        let overlaps = self.overlaps.clone();
        let resolved = through(self.way(false), move || store.resolve(claim, resolution, lifetime));
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
        through(self.way(true), move || store.renew(requests))
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(self.way(true), move || store.park(request))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let store = self.store.clone();
        through(if self.is_dead() { Way::Cut } else { Way::Open }, move || store.flush())
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.store.poll_available(cx)
    }
}

#[derive(Clone)]
pub(crate) struct SeveredPublisher {
    line: Severed,
    publisher: MemoryPublisher,
}

impl Publisher for SeveredPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let publisher = self.publisher.clone();
        through(self.line.way(false), move || publisher.publish(outgoing))
    }
}
