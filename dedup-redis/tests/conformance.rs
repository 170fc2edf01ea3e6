//! The store keeps the rules that every dedup store has to keep.
#![allow(missing_docs, clippy::unwrap_used)]

use consumer_testing::conformance::store::{self, StoreUnderTest};
use dedup_redis::RedisStore;
use xtask::servers::{RedisCluster, shared_redis};

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
