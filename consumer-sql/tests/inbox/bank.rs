//! Accounts in a database, and a stack that books into them.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use consumer_core::{Failure, Message, Outcome};
use consumer_sql::{Database, InboxLayer, SqlError, Tables, migrate};
use sqlx::{
    AssertSqlSafe, Pool, Postgres, Sqlite,
    pool::PoolOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use tower::{Layer, Service, ServiceExt};

/// What the tests need of a database beside what the crate needs.
pub(crate) trait Under: Database + Sized {
    /// Must live as long as the database is used.
    type Home: Send + Sync;

    fn make() -> impl Future<Output = (Self::Home, Pool<Self>, Tables)> + Send;
    /// Another pool of the same database.
    fn pool(home: &Self::Home, size: u32, patience: Duration) -> Pool<Self>;
    fn number(pool: &Pool<Self>, sql: String) -> impl Future<Output = i64> + Send;
    fn execute(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// A database with the accounts and the tables of the inbox.
pub(crate) struct Bank<DB: Under> {
    pub(crate) home: DB::Home,
    pub(crate) pool: Pool<DB>,
    pub(crate) tables: Tables,
}

impl<DB: Under> Bank<DB> {
    pub(crate) async fn open() -> Self {
        let bank = Self::without_tables().await;
        let mut connection = bank.pool.acquire().await.unwrap();
        migrate::<DB>(&mut *connection, &bank.tables).await.unwrap();
        bank
    }

    pub(crate) async fn without_tables() -> Self {
        let (home, pool, tables) = DB::make().await;
        let mut connection = pool.acquire().await.unwrap();
        let accounts = "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance BIGINT NOT NULL DEFAULT 0)";
        DB::execute(&mut connection, accounts.into()).await.unwrap();
        DB::execute(&mut connection, "INSERT INTO accounts (id) VALUES (0), (1), (2), (3)".into())
            .await
            .unwrap();
        drop(connection);
        Self { home, pool, tables }
    }

    pub(crate) fn layer(&self) -> InboxLayer<DB> {
        InboxLayer::new(self.pool.clone(), "bank").tables(self.tables.clone())
    }

    pub(crate) async fn balance(&self) -> i64 {
        DB::number(&self.pool, "SELECT CAST(sum(balance) AS BIGINT) FROM accounts".into()).await
    }

    pub(crate) async fn records(&self) -> i64 {
        let table = match self.tables.schema() {
            Some(schema) => format!("{schema}.consumer_inbox"),
            None => "consumer_inbox".to_owned(),
        };
        DB::number(&self.pool, format!("SELECT count(*) FROM {table}")).await
    }
}

/// Books an amount in the transaction of the message.
pub(crate) async fn book<DB: Under>(tx: &mut DB::Connection, amount: i64) -> Result<(), Failure> {
    DB::execute(tx, format!("UPDATE accounts SET balance = balance + {amount} WHERE id = 0")).await?;
    Ok(())
}

pub(crate) fn message(id: &str) -> Message {
    Message::builder().id(id.to_owned()).payload("5").build()
}

pub(crate) async fn run<S>(stack: &S, message: Message) -> Result<Outcome, Failure>
where
    S: Service<Message, Response = Outcome, Error = Failure> + Clone,
{
    stack.clone().oneshot(message).await
}

/// A stack around a handler of its own kind.
pub(crate) fn stack<DB, S>(layer: &InboxLayer<DB>, handler: S) -> consumer_sql::inbox::Inbox<S, DB>
where
    DB: Under,
    InboxLayer<DB>: Layer<S, Service = consumer_sql::inbox::Inbox<S, DB>>,
{
    layer.layer(handler)
}

pub(crate) fn sql_error(failure: &Failure) -> &SqlError {
    failure.find::<SqlError>().unwrap_or_else(|| panic!("no error of the database: {}", failure.chain()))
}

/// Waits for a condition, with a bound against hanging.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Under for Sqlite {
    type Home = tempfile::TempDir;

    async fn make() -> (Self::Home, Pool<Self>, Tables) {
        let home = tempfile::tempdir().unwrap();
        let pool = Self::pool(&home, 4, Duration::from_secs(30));
        (home, pool, Tables::new())
    }

    fn pool(home: &Self::Home, size: u32, patience: Duration) -> Pool<Self> {
        let options = SqliteConnectOptions::new()
            .filename(home.path().join("bank.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        PoolOptions::new().max_connections(size).acquire_timeout(patience).connect_lazy_with(options)
    }

    async fn number(pool: &Pool<Self>, sql: String) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
    }

    async fn execute(connection: &mut Self::Connection, sql: String) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }
}

impl Under for Postgres {
    /// The schema, which is first in the search path.
    type Home = String;

    async fn make() -> (Self::Home, Pool<Self>, Tables) {
        static SCHEMAS: AtomicU32 = AtomicU32::new(0);
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let schema = format!("inbox_{}_{number}", std::process::id());
        let pool = Self::pool(&schema, 8, Duration::from_secs(30));
        let create = format!("CREATE SCHEMA {schema}");
        sqlx::query(AssertSqlSafe(create)).execute(&pool).await.unwrap();
        let tables = Tables::new().in_schema(schema.clone()).unwrap();
        (schema, pool, tables)
    }

    fn pool(schema: &Self::Home, size: u32, patience: Duration) -> Pool<Self> {
        let options: PgConnectOptions = xtask::servers::shared_postgres().parse().unwrap();
        let options = options.options([("search_path", schema.as_str())]);
        PoolOptions::new().max_connections(size).acquire_timeout(patience).connect_lazy_with(options)
    }

    async fn number(pool: &Pool<Self>, sql: String) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
    }

    async fn execute(connection: &mut Self::Connection, sql: String) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }
}

/// A test for each database.
#[macro_export]
macro_rules! on_both {
    ($($test:ident)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test::<sqlx::Sqlite>().await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: cargo xtask test"]
                async fn $test() {
                    super::$test::<sqlx::Postgres>().await;
                }
            )*
        }
    };
}

/// What is logged by this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || log.clone()).with_ansi(false).finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
