//! The two databases.

use std::sync::atomic::{AtomicU32, Ordering};

use consumer_core::Outgoing;
use consumer_sql::{Database, Outbox, Tables, migrate};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Pool, Postgres, Sqlite,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};

#[allow(async_fn_in_trait)]
pub(crate) trait TestDatabase {
    type Database: Database;

    fn pool(&self) -> &Pool<Self::Database>;
    fn tables(&self) -> &Tables;

    /// Writes a message in a transaction of its own.
    async fn write(&self, outbox: &Outbox, message: &Outgoing);
    async fn roll_back(&self, outbox: &Outbox, message: &Outgoing);
    async fn execute(&self, sql: &str);
    async fn count(&self, of: &str) -> i64;
    /// As a literal.
    fn bytes(&self, bytes: &[u8]) -> String;
    /// So many seconds ago, as an expression.
    fn ago(&self, seconds: u32) -> String;
}

pub(crate) struct OnSqlite {
    pool: Pool<Sqlite>,
    tables: Tables,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) struct OnPostgres {
    pool: Pool<Postgres>,
    tables: Tables,
}

pub(crate) async fn sqlite() -> OnSqlite {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("outbox.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
    let tables = Tables::new().with_prefix("shop_").unwrap();
    migrate::<Sqlite>(&mut pool.acquire().await.unwrap(), &tables).await.unwrap();
    OnSqlite { pool, tables, folder }
}

/// In a schema of its own.
pub(crate) async fn postgres() -> OnPostgres {
    on(&xtask::servers::shared_postgres()).await
}

pub(crate) async fn on(url: &str) -> OnPostgres {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pool = PgPoolOptions::new().max_connections(8).connect(url).await.unwrap();
    let schema = format!("relay_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let tables = Tables::new().in_schema(schema).unwrap();
    migrate::<Postgres>(&mut pool.acquire().await.unwrap(), &tables).await.unwrap();
    OnPostgres { pool, tables }
}

impl OnPostgres {
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.pool.connect_options()).await.unwrap()
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        let schema = self.tables.schema().unwrap();
        sql.replace("OUTBOX", &format!("{schema}.consumer_outbox"))
            .replace("INBOX", &format!("{schema}.consumer_inbox"))
    }

    fn literal(hex: &str) -> String {
        format!(r"'\x{hex}'")
    }

    fn before(seconds: u32) -> String {
        format!("now() - interval '{seconds} seconds'")
    }
}

impl OnSqlite {
    fn sql(&self, sql: &str) -> String {
        sql.replace("OUTBOX", "shop_outbox").replace("INBOX", "shop_inbox")
    }

    fn literal(hex: &str) -> String {
        format!("x'{hex}'")
    }

    fn before(seconds: u32) -> String {
        format!("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - {seconds}000")
    }
}

macro_rules! test_database {
    ($type:ty, $database:ty) => {
        impl TestDatabase for $type {
            type Database = $database;

            fn pool(&self) -> &Pool<$database> {
                &self.pool
            }

            fn tables(&self) -> &Tables {
                &self.tables
            }

            async fn write(&self, outbox: &Outbox, message: &Outgoing) {
                let mut transaction = self.pool.begin().await.unwrap();
                outbox.publish(&mut *transaction, message).await.unwrap();
                transaction.commit().await.unwrap();
            }

            async fn roll_back(&self, outbox: &Outbox, message: &Outgoing) {
                let mut transaction = self.pool.begin().await.unwrap();
                outbox.publish(&mut *transaction, message).await.unwrap();
                transaction.rollback().await.unwrap();
            }

            async fn execute(&self, sql: &str) {
                sqlx::query(AssertSqlSafe(self.sql(sql))).execute(&self.pool).await.unwrap();
            }

            async fn count(&self, of: &str) -> i64 {
                let sql = self.sql(&format!("SELECT count(*) FROM OUTBOX WHERE {of}"));
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
            }

            fn bytes(&self, bytes: &[u8]) -> String {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Self::literal(&hex)
            }

            fn ago(&self, seconds: u32) -> String {
                Self::before(seconds)
            }
        }
    };
}

test_database!(OnSqlite, Sqlite);
test_database!(OnPostgres, Postgres);
