//! What a delivery shares with the others of its assignment and of its consumer.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{BoxError, Failure, Message, dedup::Registry, runtime};

/// One assignment of a source: cancelled when its deliveries should be handed back.
pub(crate) struct Scope {
    token: CancellationToken,
    run: Arc<Run>,
    /// Tells what the token tells, without its lock: it is read for every message.
    cancelled: AtomicBool,
    /// Somebody else's token, of which only the token itself can tell.
    foreign: bool,
    /// Set when what still runs in the scope has to be dropped.
    over: AtomicBool,
}

thread_local! {
    static ASKING: RefCell<Option<Arc<Run>>> = const { RefCell::new(None) };
}

/// One run of a consumer.
pub(crate) struct Run {
    id: u64,
    waiting: AtomicUsize,
    retried: AtomicU64,
    ordering: runtime::Ordering,
    refusal: OnceLock<&'static str>,
    on_refusal: AtomicWaker,
    registries: Mutex<Vec<Arc<Registry>>>,
}

pub(crate) fn never() -> &'static CancellationToken {
    static NEVER: OnceLock<CancellationToken> = OnceLock::new();
    NEVER.get_or_init(CancellationToken::new)
}

impl Scope {
    pub(crate) fn new(token: CancellationToken, run: Arc<Run>) -> Self {
        Self { token, run, cancelled: AtomicBool::new(false), foreign: false, over: AtomicBool::new(false) }
    }

    /// A scope without a runtime around it.
    pub(crate) fn detached(token: CancellationToken) -> Self {
        Self { foreign: true, ..Self::new(token, Run::new()) }
    }

    pub(crate) fn with_token(&self, token: CancellationToken) -> Self {
        Self { foreign: true, ..Self::new(token, self.run.clone()) }
    }

    /// Asks for everything in the scope to be handed back.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || (self.foreign && self.token.is_cancelled())
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) fn run(&self) -> &Arc<Run> {
        &self.run
    }
}

impl Run {
    pub(crate) fn new() -> Arc<Self> {
        Self::ordered(runtime::Ordering::None)
    }

    pub(crate) fn ordered(ordering: runtime::Ordering) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            waiting: AtomicUsize::new(0),
            retried: AtomicU64::new(0),
            ordering,
            refusal: OnceLock::new(),
            on_refusal: AtomicWaker::new(),
            registries: Mutex::default(),
        })
    }

    /// Unique in the process, never 0.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// How many deliveries are held without executing.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Which messages run one after another.
    pub(crate) fn ordering(&self) -> runtime::Ordering {
        self.ordering
    }

    /// A layer cannot keep what the run promises: it ends with this error, and everything is handed back.
    pub(crate) fn refuse(&self, why: &'static str) {
        if self.refusal.set(why).is_ok() {
            self.on_refusal.wake();
        }
    }

    /// Does what asks the stack whether it is ready, with the run in sight of the layers: so one that cannot keep the run's
    /// promises refuses it before a message was taken. A layer that is polled in another task does not see it.
    pub(crate) fn asking<T>(self: &Arc<Self>, ask: impl FnOnce() -> T) -> T {
        struct Before(Option<Arc<Run>>);
        impl Drop for Before {
            fn drop(&mut self) {
                ASKING.set(self.0.take());
            }
        }
        let _before = Before(ASKING.replace(Some(self.clone())));
        ask()
    }

    /// The run that asks at the moment.
    pub(crate) fn that_asks() -> Option<Arc<Self>> {
        ASKING.with_borrow(Clone::clone)
    }

    pub(crate) fn poll_refused(&self, cx: &Context<'_>) -> Poll<&'static str> {
        self.on_refusal.register(cx.waker());
        self.refusal.get().map_or(Poll::Pending, |why| Poll::Ready(why))
    }

    /// A call after the first of its message begins.
    pub(crate) fn count_retry(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls after the first of their message.
    pub(crate) fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// A layer's claims, whose store is to be flushed when the run ends.
    pub(crate) fn register(&self, registry: &Arc<Registry>) {
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        // A stack that two runs share registers whenever the run changes from one message to the next.
        if !registries.iter().any(|known| Arc::ptr_eq(known, registry)) {
            registries.push(registry.clone());
        }
    }

    /// Waits, within `limit`, until every store that was used has answered what was enqueued.
    pub(crate) async fn flush_stores(&self, limit: Duration) -> bool {
        let registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = async {
            for registry in registries {
                if let Err(error) = registry.flush().await {
                    tracing::error!(error = %crate::failure::chain(&error), "the dedup store could not be flushed");
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Counts a delivery as waiting until dropped.
pub(crate) struct Waiting(Option<Arc<Scope>>);

impl Waiting {
    pub(crate) fn of(message: &Message) -> Self {
        Self::within(message.scope())
    }

    fn within(scope: Option<&Arc<Scope>>) -> Self {
        if let Some(scope) = scope {
            scope.run.waiting.fetch_add(1, Ordering::Relaxed);
        }
        Self(scope.cloned())
    }
}

/// Awaits a backend for a delivery of `scope`, which counts as waiting meanwhile: an outage is no wedged handler.
/// Tells as well how long the answer had to be waited for; the clock is not looked at for one that is there at once.
pub(crate) fn answered<F: Future>(scope: Option<&Arc<Scope>>, answer: F) -> Answered<'_, F> {
    Answered { answer, scope, waiting: None }
}

pin_project! {
    /// The future of [`answered`]; written by hand, since it lies in the future of every message.
    pub(crate) struct Answered<'a, F> {
        #[pin]
        answer: F,
        scope: Option<&'a Arc<Scope>>,
        waiting: Option<(Waiting, Instant)>,
    }
}

impl<F: Future> Future for Answered<'_, F> {
    type Output = (F::Output, Duration);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.answer.poll(cx) {
            Poll::Ready(output) => {
                let waited = this.waiting.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                Poll::Ready((output, waited))
            }
            Poll::Pending => {
                this.waiting.get_or_insert_with(|| (Waiting::within(*this.scope), Instant::now()));
                Poll::Pending
            }
        }
    }
}

/// A message that waits for a permit of what is inside the retries. It keeps its place in the gate, since a suspect that
/// has the gate to itself must not wait for a permit whose holder waits for the gate.
pub(crate) struct Queued {
    _waiting: Waiting,
    cancelled: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Polls a service until it is ready for the message; `None` when that was cancelled meanwhile. What has to be waited
/// for is kept in `queued`.
pub(crate) fn poll_ready_or_cancelled<S: Service<Message>>(
    service: &mut S,
    message: &Message,
    queued: &mut Option<Queued>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<(), S::Error>>> {
    if queued.as_mut().is_some_and(|queued| queued.cancelled.as_mut().poll(cx).is_ready()) {
        return Poll::Ready(None);
    }
    if let Poll::Ready(ready) = service.poll_ready(cx) {
        *queued = None;
        return Poll::Ready(Some(ready));
    }
    if queued.is_none() {
        let mut cancelled: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(message.to_be_handed_back());
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        *queued = Some(Queued { _waiting: Waiting::of(message), cancelled });
    }
    Poll::Pending
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(scope) = &self.0 {
            scope.run.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Message {
    /// As its cancellation says, at the cost of one atomic load.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.scope().is_some_and(|scope| scope.is_cancelled())
    }

    /// Whether it has been held for as long as its broker lets it be held.
    pub(crate) fn is_overdue(&self) -> bool {
        self.hold_until().is_some_and(|until| until <= Instant::now())
    }

    /// Resolves when what waits has to hand the message back.
    fn to_be_handed_back(&self) -> impl Future<Output = ()> + Send + use<> {
        let token = self.cancellation().clone();
        // Boxed, since only some brokers ask for it and this future lies in that of every message that waits.
        let overdue = self.hold_until().map(|until| Box::pin(sleep_until(until)));
        async move {
            match overdue {
                None => token.cancelled().await,
                Some(overdue) => {
                    tokio::select! {
                        biased;
                        () = token.cancelled() => {}
                        () = overdue => {}
                    }
                }
            }
        }
    }

    /// Counts a call after the first for the run's report.
    pub(crate) fn count_retry(&self) {
        if let Some(scope) = self.scope() {
            scope.run.count_retry();
        }
    }

    /// For layers that wait (a backoff, a rate): awaits `wait` without counting the message as executing.
    ///
    /// While it waits, another message that has to run alone may run; the future resolves once this one may go on. A
    /// message that has to run alone itself lets others run while it waits, and is alone again before it goes on.
    /// Use it inside the dedup layer as well as outside; never while holding a permit taken inside the retry layer.
    ///
    /// # Cancel safety
    /// Dropping the future drops `wait`; the message stays held. It may have lost its turn to run beside others, so a layer
    /// that drops the future hands the message back and does not call on.
    pub async fn while_waiting<F: Future>(&self, wait: F) -> F::Output {
        let waiting = Waiting::of(self);
        if let Some(claim) = self.claim() {
            claim.leave_gate().await;
        }
        let output = wait.await;
        if let Some(claim) = self.claim() {
            claim.enter_gate().await;
        }
        drop(waiting);
        output
    }

    /// Like [`while_waiting`](Self::while_waiting), given up when the message is cancelled or was held for as long as its
    /// broker lets it be ([`hold_until`](Self::hold_until)): then `None`, and the message has to be handed back, for it
    /// has no place among those that execute.
    pub async fn wait_or_cancelled<F: Future>(&self, wait: F) -> Option<F::Output> {
        let handed_back = self.to_be_handed_back();
        tokio::select! {
            biased;
            () = handed_back => None,
            output = self.while_waiting(wait) => Some(output),
        }
    }

    /// For layers that ask a backend for what they need to call the handler: awaits `answer`, and the message counts as
    /// waiting meanwhile. Given up when the message is cancelled or was held for as long as its broker lets it be: then
    /// `None`, and the message has to be handed back.
    ///
    /// Unlike [`while_waiting`](Self::while_waiting) it keeps the place among those that execute: use it inside a
    /// concurrency limit.
    ///
    /// # Cancel safety
    /// Dropping the future drops `answer`; the message stays held.
    pub async fn answered_or_cancelled<F: Future>(&self, answer: F) -> Option<F::Output> {
        let answer = answered(self.scope(), answer);
        tokio::select! {
            biased;
            (output, _) = answer => Some(output),
            () = self.to_be_handed_back() => None,
        }
    }

    /// Makes a service ready; while that takes time, the message waits instead of executing. `None` when it was
    /// cancelled meanwhile.
    pub(crate) async fn until_ready<S>(&self, service: &mut S) -> Option<Result<(), Failure>>
    where
        S: Service<Message, Error: Into<BoxError>>,
    {
        let mut poll = |cx: &mut Context<'_>| service.poll_ready(cx).map_err(Failure::from_error);
        match poll_fn(|cx| Poll::Ready(poll(cx))).await {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => self.wait_or_cancelled(poll_fn(poll)).await,
        }
    }
}
