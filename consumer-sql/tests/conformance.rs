//! The stores keep the rules that every dedup store has to keep, and follow the reference model.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

#[cfg(feature = "sqlite")]
mod sqlite {
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
}

#[cfg(feature = "postgres")]
mod postgres {
    use consumer_sql::{PostgresStore, Tables};
    use consumer_testing::conformance::store::{self, StoreUnderTest};
    use xtask::servers::shared_postgres;

    struct Postgres(Tables);

    impl StoreUnderTest for Postgres {
        type Store = PostgresStore;

        async fn store(&self) -> PostgresStore {
            PostgresStore::builder(shared_postgres()).tables(self.0.clone()).connect().await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs servers: cargo xtask test"]
    async fn a_server_keeps_the_rules() {
        let schema = consumer_testing::unique("rules").replace('-', "_");
        store::run_all(&Postgres(Tables::new().in_schema(schema).unwrap())).await;
    }
}
