//! The layers of the core, and some of tower's between them, keep the readiness contract.

use std::time::Duration;

use consumer_core::{
    CatchPanicLayer, DeadLetterLayer, DedupLayer, RateLimitLayer, RetryLayer, TimeoutLayer, TraceLayer,
    memory::{MemoryBroker, MemoryStore},
};
use consumer_testing::readiness::assert_readiness_contract;
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn dedup() -> DedupLayer<MemoryStore> {
    DedupLayer::new(MemoryStore::new(), "mails")
}

#[tokio::test(start_paused = true)]
async fn every_layer_alone() {
    let broker = MemoryBroker::new();
    broker.create_topic("dead", 1);
    assert_readiness_contract(TraceLayer::new()).await;
    assert_readiness_contract(DeadLetterLayer::new(broker.publisher(), "dead")).await;
    assert_readiness_contract(dedup()).await;
    assert_readiness_contract(RetryLayer::exponential(SECOND)).await;
    assert_readiness_contract(RateLimitLayer::per_second(1)).await;
    assert_readiness_contract(TimeoutLayer::new(SECOND)).await;
    assert_readiness_contract(CatchPanicLayer::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stack_with_layers_of_tower_between() {
    let broker = MemoryBroker::new();
    broker.create_topic("dead", 1);
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(dedup())
        .layer(timeout::TimeoutLayer::new(SECOND * 60))
        .layer(RetryLayer::exponential(SECOND))
        .layer(RateLimitLayer::per_second(10))
        .layer(ConcurrencyLimitLayer::new(4))
        .layer(TimeoutLayer::new(SECOND))
        .layer(CatchPanicLayer::new())
        .into_inner();
    assert_readiness_contract(stack).await;
}
