//! The store keeps the rules that every dedup store has to keep.
#![allow(missing_docs, clippy::unwrap_used)]

use consumer_testing::conformance::store::{self, StoreUnderTest};
use dedup_redis::RedisStore;
use xtask::servers::{RedisCluster, RedisSentinel, shared_redis};

struct Redis(String);

impl StoreUnderTest for Redis {
    type Store = RedisStore;

    async fn store(&self) -> RedisStore {
        RedisStore::connect(self.0.clone()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_single_node_keeps_the_rules() {
    store::run_all(&Redis(shared_redis())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_cluster_keeps_the_rules() {
    let cluster = RedisCluster::start().unwrap();
    store::run_all(&Redis(format!("redis+cluster://127.0.0.1:{}", cluster.nodes()[1].port()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_primary_behind_a_sentinel_keeps_the_rules() {
    let set = RedisSentinel::start().unwrap();
    let url = format!("redis+sentinel://127.0.0.1:{}/{}", set.sentinel().port(), RedisSentinel::MASTER_NAME);
    store::run_all(&Redis(url)).await;
}
