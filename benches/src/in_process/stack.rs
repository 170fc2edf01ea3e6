//! The stack alone: one message at a time through all layers.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use consumer_core::{
    BoxError, CatchPanicLayer, DeadLetterLayer, DedupLayer, Failure, Message, MetricsLayer, Outcome,
    RateLimitLayer, RetryLayer, TimeoutLayer, TraceLayer, dedup::DedupStore,
};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::{
    null::{NullPublisher, NullStore},
    replay,
};
use crate::{
    report::{Report, Row},
    rounds::medians,
};

/// What every contestant handles: the payload is looked at and nothing is done.
pub(super) async fn handle(message: Message) -> Result<(), Failure> {
    std::hint::black_box(message.payload());
    Ok(())
}

/// All layers of the framework in their order, around [`handle`].
pub(crate) fn full<D: DedupStore>(store: D) -> impl Full {
    full_around(service_fn(handle), store)
}

/// As [`full`], around any handler.
pub(crate) fn full_around<H, D: DedupStore>(handler: H, store: D) -> impl Full
where
    H: Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + 'static,
{
    ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(MetricsLayer::new("bench"))
        .layer(DeadLetterLayer::new(NullPublisher, "orders.dead"))
        .layer(DedupLayer::new(store, "bench"))
        .layer(RetryLayer::exponential(Duration::from_secs(1)).max_attempts(3))
        .layer(RateLimitLayer::per_second(1_000_000_000))
        .layer(ConcurrencyLimitLayer::new(1024))
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(CatchPanicLayer::new())
        .service(handler)
}

/// What a stack is in the end.
pub(crate) trait Full:
    Service<Message, Response = Outcome, Error = Failure, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Full for S where
    S: Service<Message, Response = Outcome, Error = Failure, Future: Send> + Clone + Send + Sync + 'static
{
}

pub(super) fn measure(report: &mut Report) {
    let runtime = super::runtime::single();
    let messages = replay::messages(0..1024);
    let mut handler = service_fn(handle);
    let mut stack = full(NullStore);
    let [alone, through] = medians(101, |contestant| {
        runtime.block_on(async {
            match contestant {
                0 => each(&mut handler, &messages).await,
                _ => each(&mut stack, &messages).await,
            }
        })
    })
    .map(|time: Duration| time.as_nanos() as f64 / messages.len() as f64);
    report.add(Row::new("handler alone", alone, "ns"));
    report.add(Row::new("stack, null store", through, "ns").against("handler alone", alone).at_most(300.0));

    let mut counted = 0;
    let info = allocation_counter::measure(|| {
        runtime.block_on(async {
            each(&mut stack, &messages).await;
        });
        counted += messages.len();
    });
    report.add(Row::new("stack, null store", info.count_total as f64 / counted as f64, "allocations"));
}

/// Hands each message to the service and waits for it.
async fn each<S>(service: &mut S, messages: &[Message]) -> Duration
where
    S: Service<Message, Error: Into<BoxError>, Future: Future>,
{
    let from = Instant::now();
    for message in messages {
        let called = match service.ready().await {
            Ok(ready) => ready.call(message.clone()).await,
            Err(error) => Err(error),
        };
        assert!(called.is_ok(), "the handler cannot fail");
    }
    from.elapsed()
}
