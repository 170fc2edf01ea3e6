//! Accounts in a database, and a stack that books into them.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use consumer_core::{Failure, Message, Outcome};
use consumer_sql::{Database, InboxLayer, SqlError, Tables, migrate};
use sqlx::{
    AssertSqlSafe, Connection, Pool, Postgres, Sqlite,
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
    /// Begins a savepoint that is dropped before it has begun.
    fn begin_and_drop(connection: &mut Self::Connection) -> impl Future<Output = ()> + Send {
        poll_and_drop(connection.begin())
    }
}

/// Polls once: it is sent, and whoever asked has gone.
async fn poll_and_drop(future: impl Future) {
    let mut future = std::pin::pin!(future);
    let is_pending = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
    assert!(is_pending.await);
}

tokio::task_local! {
    /// Set for the tests that run in batch mode.
    pub(crate) static BATCH: usize;
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
        self.layer_on(self.pool.clone())
    }

    /// On another pool of the same database.
    pub(crate) fn layer_on(&self, pool: Pool<DB>) -> InboxLayer<DB> {
        let max = BATCH.try_with(|max| *max).unwrap_or(1);
        InboxLayer::new(pool, "bank").tables(self.tables.clone()).batch(max).batches_at_once(1)
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

    /// The server is busy when it comes.
    async fn begin_and_drop(connection: &mut Self::Connection) {
        poll_and_drop(sqlx::raw_sql("SELECT pg_sleep(1)").execute(&mut *connection)).await;
        poll_and_drop(connection.begin()).await;
    }

    async fn execute(connection: &mut Self::Connection, sql: String) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }
}

/// A test for each database, with a transaction for each message and in batches.
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

        mod sqlite_in_batches {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    $crate::bank::BATCH.scope(8, super::$test::<sqlx::Sqlite>()).await;
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

        mod postgres_in_batches {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: cargo xtask test"]
                async fn $test() {
                    $crate::bank::BATCH.scope(8, super::$test::<sqlx::Postgres>()).await;
                }
            )*
        }
    };
}

/// What the process has logged. One subscriber for all tests: what is enabled is remembered for the whole process.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn of_process() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        let listen = || {
            let log = Log::default();
            let writer = log.clone();
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
            log
        };
        LOG.get_or_init(listen).clone()
    }

    /// Lines in which all these words are.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        let log = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
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
