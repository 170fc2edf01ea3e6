//! Random crashes, redeliveries, expiries and lost replies, checked against the reference model.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use consumer_testing::{conformance::store::StoreUnderTest, model::check_store};
use dedup_redis::RedisStore;
use futures_util::future::join_all;
use xtask::servers::shared_redis;

struct Redis(RedisStore);

impl StoreUnderTest for Redis {
    type Store = RedisStore;

    async fn store(&self) -> RedisStore {
        self.0.clone()
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(1250)
    }
}

/// In real time, so several sequences at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn random_sequences_follow_the_model() {
    let redis = Redis(RedisStore::connect(shared_redis()).await.unwrap());
    join_all((0..10).map(|_| check_store(&redis, 2))).await;
}
