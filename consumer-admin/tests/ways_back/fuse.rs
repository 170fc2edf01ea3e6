//! Ends the process by SIGKILL at a step that is named.

use std::{
    fmt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use consumer_core::{
    BoxSource, Delivery, Demand, DynPublisher, Event, Outgoing, PublishError, Publisher, Settlement, Source,
    SourceError, Tag,
    dead_letters::{BoxFuture, DeadLetter, DeadLettersError, Letters, Place, Settled},
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, DynStore, ParkReply, ParkRequest, RenewRequest, Renewal,
        Resolution, Resolved, StoreError,
    },
};

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The handler has failed, or the letter is read; nothing is published.
    Begun,
    /// The broker has the copy; nobody has heard of it.
    Published,
    /// The confirm was seen; nothing is recorded.
    Confirmed,
    /// *Deferred* or *dead-lettered* is recorded, or the letter is settled; nothing is acked.
    Recorded,
    /// The ack was given to the source.
    Acked,
}

impl Step {
    pub(crate) const ALL: [Self; 5] =
        [Self::Begun, Self::Published, Self::Confirmed, Self::Recorded, Self::Acked];

    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == text)
    }
}

/// Burns through at the fourth time the step is reached.
#[derive(Clone)]
pub(crate) struct Fuse {
    step: Option<Step>,
    left: Arc<AtomicI64>,
}

impl Fuse {
    pub(crate) fn new(step: Option<Step>) -> Self {
        Self { step, left: Arc::new(AtomicI64::new(4)) }
    }

    fn reached(&self, step: Step) {
        if self.step == Some(step) && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let id = std::process::id().to_string();
            Command::new("kill").args(["-KILL", &id]).status().unwrap();
            loop {
                thread::park();
            }
        }
    }
}

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fuse({:?})", self.step)
    }
}

/// Something with a fuse in it.
#[derive(Debug, Clone)]
pub(crate) struct Fused<T>(pub(crate) T, pub(crate) Fuse);

impl Publisher for Fused<DynPublisher> {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        self.1.reached(Step::Begun);
        let (published, fuse) = (self.0.publish(outgoing), self.1.clone());
        async move {
            published.await?;
            fuse.reached(Step::Published);
            Ok(())
        }
    }
}

impl DedupStore for Fused<DynStore> {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.0.claim(request)
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        let is_way_back = matches!(resolution, Resolution::Deferred { .. } | Resolution::DeadLettered);
        if is_way_back {
            self.1.reached(Step::Confirmed);
        }
        let (resolved, fuse) = (self.0.resolve(claim, resolution, lifetime), self.1.clone());
        async move {
            let resolved = resolved.await?;
            if is_way_back {
                fuse.reached(Step::Recorded);
            }
            Ok(resolved)
        }
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.0.renew(requests)
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        self.0.park(request)
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.0.flush()
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_available(cx)
    }
}

impl Source for Fused<BoxSource> {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        self.0.configure(demand)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        self.0.poll_event(cx, room, out)
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        self.0.settle(tag, how);
        if how == Settlement::Ack {
            self.1.reached(Step::Acked);
        }
    }

    fn release(&mut self, scope: u64) {
        self.0.release(scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.0.poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.0.poll_close(cx)
    }

    fn lag(&self) -> Option<u64> {
        self.0.lag()
    }
}

#[async_trait]
impl Letters for Fused<Box<dyn Letters>> {
    fn expected(&self) -> Option<u64> {
        self.0.expected()
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        self.0.next().await
    }

    fn prepare(&mut self) -> BoxFuture<Result<(), DeadLettersError>> {
        self.0.prepare()
    }

    fn settle(&mut self, place: Place, how: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        self.1.reached(Step::Confirmed);
        let (settled, fuse) = (self.0.settle(place, how), self.1.clone());
        Box::pin(async move {
            settled.await?;
            fuse.reached(Step::Recorded);
            Ok(())
        })
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        self.0.close().await
    }
}
