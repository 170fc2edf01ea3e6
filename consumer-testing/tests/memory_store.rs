//! The in-memory store keeps the rules of the protocol.

use std::time::Duration;

use consumer_core::memory::MemoryStore;
use consumer_testing::conformance::store::{self, StoreUnderTest};

struct Memory(MemoryStore);

impl StoreUnderTest for Memory {
    type Store = MemoryStore;

    async fn store(&self) -> MemoryStore {
        self.0.clone()
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(30)
    }
}

#[tokio::test(start_paused = true)]
async fn conformance() {
    store::run_all(&Memory(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn conformance_behind_an_erased_type() {
    struct Erased(consumer_core::dedup::DynStore);

    impl StoreUnderTest for Erased {
        type Store = consumer_core::dedup::DynStore;

        async fn store(&self) -> Self::Store {
            self.0.clone()
        }
    }

    store::run_all(&Erased(consumer_core::dedup::DynStore::new(MemoryStore::new()))).await;
}

#[tokio::test(start_paused = true)]
async fn model() {
    consumer_testing::model::check_store(&Memory(MemoryStore::new()), 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_claims_on_several_threads() {
    let subject = Memory(MemoryStore::new());
    for _ in 0..50 {
        store::one_of_many_concurrent_claims_wins(&subject).await;
        store::a_completion_is_never_undone_by_concurrent_claims(&subject).await;
    }
}
