//! Every layer makes ready the very service that it calls, alone and with other crates' layers beside it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{
    BoxError, CatchPanicLayer, DeadLetterLayer, DedupLayer, Failure, IdempotencyKey, Message, MetricsLayer,
    Pipeline, RateLimitLayer, RetryLayer, TimeoutLayer, TraceLayer,
    memory::{MemoryBroker, MemoryPublisher, MemoryStore},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer, layer::layer_fn,
    limit::ConcurrencyLimitLayer, load_shed::LoadShedLayer, timeout::TimeoutLayer as TowerTimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// A service that is never ready at once, whose clones are not ready, and which panics when called unready.
struct Probe {
    seen: Arc<Seen>,
    polled: bool,
    ready: bool,
}

#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    /// Apart from the panic, because a layer may catch that.
    violated: AtomicBool,
}

impl Probe {
    fn new() -> Self {
        Self { seen: Arc::default(), polled: false, ready: false }
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self { seen: self.seen.clone(), polled: false, ready: false }
    }
}

impl Service<Message> for Probe {
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.polled {
            self.polled = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        if !self.ready {
            self.seen.violated.store(true, Ordering::Relaxed);
            panic!("called without being ready");
        }
        (self.ready, self.polled) = (false, false);
        self.seen.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::time::sleep(SECOND / 10).await;
            // Only a layer that tries again gets past this.
            if message.payload() == "again" && message.attempt() == 1 { Err("away".into()) } else { Ok(()) }
        })
    }
}

/// One instance in sequence, then clones side by side. Returns how many messages came through.
async fn drive<S>(mut stack: S, payload: &'static str) -> usize
where
    S: Service<Message, Error: Into<BoxError>> + Clone,
{
    let mut done = 0;
    for _ in 0..3 {
        let Ok(ready) = stack.ready().await else { continue };
        done += usize::from(ready.call(Message::new(payload)).await.is_ok());
    }
    let one = || stack.clone().oneshot(Message::new(payload));
    let (a, b, c) = tokio::join!(one(), one(), one());
    done + usize::from(a.is_ok()) + usize::from(b.is_ok()) + usize::from(c.is_ok())
}

fn kept(probe: &Probe) -> bool {
    !probe.seen.violated.load(Ordering::Relaxed) && probe.seen.calls.load(Ordering::Relaxed) > 0
}

/// Messages are told apart by a count, since a duplicate would not come through to the probe.
fn dedup() -> DedupLayer<MemoryStore> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let unique = |_: &Message| Some(NEXT.fetch_add(1, Ordering::Relaxed).to_string().into());
    DedupLayer::new(MemoryStore::new(), "test").key(IdempotencyKey::from_fn(unique))
}

fn dead_letter() -> DeadLetterLayer<MemoryPublisher> {
    let broker = MemoryBroker::new();
    broker.create_topic("dead", 1);
    DeadLetterLayer::new(broker.publisher(), "dead")
}

/// The contract of one layer: alone, and with layers of tower inside and outside.
macro_rules! contract {
    ($test:ident, $payload:literal, $layer:expr) => {
        #[tokio::test(start_paused = true)]
        async fn $test() {
            macro_rules! stack {
                ($probe:ident, $builder:expr, $messages:literal) => {
                    let $probe = Probe::new();
                    let done = drive($builder.service($probe.clone()), $payload).await;
                    assert!(kept(&$probe), "{}", stringify!($builder));
                    assert!(done >= $messages, "{done} messages came through {}", stringify!($builder));
                };
            }
            let builder = ServiceBuilder::new;
            stack!(probe, builder().layer($layer), 6);
            stack!(probe, builder().layer($layer).layer(ConcurrencyLimitLayer::new(1)), 6);
            stack!(probe, builder().layer(ConcurrencyLimitLayer::new(1)).layer($layer), 6);
            stack!(probe, builder().layer($layer).layer(BufferLayer::new(4)), 6);
            stack!(probe, builder().layer(BufferLayer::new(4)).layer($layer), 6);
            stack!(probe, builder().layer($layer).layer(TowerTimeoutLayer::new(60 * SECOND)), 6);
            stack!(probe, builder().layer(TowerTimeoutLayer::new(60 * SECOND)).layer($layer), 6);
        }
    };
}

contract!(trace_keeps_the_contract, "x", TraceLayer::new());
contract!(metrics_keeps_the_contract, "x", MetricsLayer::new("test"));
contract!(retry_keeps_the_contract, "again", RetryLayer::fixed(SECOND));
contract!(rate_limit_keeps_the_contract, "x", RateLimitLayer::per_second(2));
contract!(dedup_keeps_the_contract, "x", dedup());
contract!(dead_letter_keeps_the_contract, "x", dead_letter());
contract!(timeout_keeps_the_contract, "x", TimeoutLayer::new(10 * SECOND));
contract!(catch_panic_keeps_the_contract, "x", CatchPanicLayer::new());

/// What load shedding refuses because the probe is never ready at once fails; what it lets through was ready.
#[tokio::test(start_paused = true)]
async fn load_shedding_may_stand_inside_and_outside() {
    macro_rules! shed {
        ($($layer:expr),*) => {$(
            for payload in ["x", "again"] {
                let probe = Probe::new();
                let inside = ServiceBuilder::new().layer($layer).layer(LoadShedLayer::new());
                drive(inside.service(probe.clone()), payload).await;
                assert!(!probe.seen.violated.load(Ordering::Relaxed), "{}", stringify!($layer));
                let outside = ServiceBuilder::new().layer(LoadShedLayer::new()).layer($layer);
                drive(outside.service(probe.clone()), payload).await;
                assert!(!probe.seen.violated.load(Ordering::Relaxed), "{}", stringify!($layer));
            }
        )*};
    }
    shed!(
        TraceLayer::new(),
        MetricsLayer::new("test"),
        dead_letter(),
        dedup(),
        RetryLayer::fixed(SECOND),
        RateLimitLayer::per_second(2),
        TimeoutLayer::new(10 * SECOND),
        CatchPanicLayer::new()
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_foreign_layer_is_tried_again() {
    let probe = Probe::new();
    let stack = ServiceBuilder::new().layer(RetryLayer::fixed(SECOND)).layer(LoadShedLayer::new());
    let stack = stack.service(probe.clone());
    // The probe is not ready at first, so the first attempt is shed.
    assert!(stack.oneshot(Message::new("x")).await.is_ok());
    assert_eq!(probe.seen.calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_whole_pipeline_keeps_the_contract() {
    let pipeline = Pipeline::new()
        .trace(TraceLayer::new())
        .metrics(MetricsLayer::new("test"))
        .dead_letter(dead_letter())
        .dedup(dedup())
        .retry(RetryLayer::exponential(SECOND))
        .rate_limit(RateLimitLayer::per_second(5))
        .concurrency(2)
        .timeout(TimeoutLayer::new(10 * SECOND));
    let probe = Probe::new();
    assert_eq!(drive(pipeline.service(probe.clone()), "again").await, 6);
    assert!(kept(&probe));
    assert_eq!(probe.seen.calls.load(Ordering::Relaxed), 12);
}

/// The mistake that the probe is for.
#[derive(Clone)]
struct CallsAClone<S>(S);

impl<S: Service<Message> + Clone> Service<Message> for CallsAClone<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> S::Future {
        self.0.clone().call(message)
    }
}

#[tokio::test]
async fn the_probe_notices_a_layer_that_calls_what_it_has_not_made_ready() {
    let probe = Probe::new();
    let stack = layer_fn(CallsAClone).layer(probe.clone());
    let stack = CatchPanicLayer::new().layer(stack);
    let failure: Failure = stack.oneshot(Message::new("x")).await.unwrap_err();
    assert!(failure.chain().contains("called without being ready"));
    assert!(!kept(&probe));
}
