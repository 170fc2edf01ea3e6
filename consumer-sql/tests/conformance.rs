//! The store keeps the rules that every dedup store has to keep, and follows the reference model.
#![allow(missing_docs, clippy::unwrap_used)]

use consumer_sql::SqliteStore;
use consumer_testing::conformance::store::{self, StoreUnderTest};

struct Sqlite(tempfile::TempDir);

impl StoreUnderTest for Sqlite {
    type Store = SqliteStore;

    async fn store(&self) -> SqliteStore {
        SqliteStore::open(format!("sqlite:{}", self.0.path().join("dedup.db").display())).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_keeps_the_rules() {
    store::run_all(&Sqlite(tempfile::tempdir().unwrap())).await;
}
