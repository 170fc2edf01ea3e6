//! The database: which there are, their tables and their statements. Nothing else knows SQL.

use std::{str::FromStr, time::Duration};

use consumer::{
    BoxError, Outgoing,
    sql::{Database, Outbox, SqlError, Tables, migrate},
};
use sqlx::{
    Pool, Sqlite,
    pool::PoolOptions,
    query, query_as, query_scalar, raw_sql,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
#[cfg(feature = "postgres")]
use sqlx::{Postgres, postgres::PgConnectOptions};

use crate::order::Order;

const CONNECTIONS: u32 = 16;

/// The statements of this program. All that can collide has a unique key: what was there before is told by the database,
/// whichever process wrote it.
pub(crate) trait Shop: Database {
    /// Creates what is missing.
    fn create(connection: &mut Self::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Whether the key is new. One that another transaction has written and not committed is waited for.
    fn insert_key(
        connection: &mut Self::Connection,
        key: &str,
        order_id: &str,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// The order that a key stands for.
    fn order_id(
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = Result<String, sqlx::Error>> + Send;

    /// Whether there was no order of this id. As [`insert_key`](Self::insert_key).
    fn insert_order(
        connection: &mut Self::Connection,
        order: &Order,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    fn order(
        connection: &mut Self::Connection,
        order_id: &str,
    ) -> impl Future<Output = Result<Option<Order>, sqlx::Error>> + Send;

    fn balance(
        connection: &mut Self::Connection,
        email: &str,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;

    fn add(
        connection: &mut Self::Connection,
        email: &str,
        total: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn publish(
        connection: &mut Self::Connection,
        outbox: &Outbox,
        event: &Outgoing,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;
}

/// Both understand the same SQL; sqlx's traits are too many to say so in one implementation.
macro_rules! shop {
    ($database:ty, $tables:expr) => {
        impl Shop for $database {
            async fn create(connection: &mut Self::Connection) -> Result<(), sqlx::Error> {
                raw_sql($tables).execute(connection).await.map(drop)
            }

            async fn insert_key(
                connection: &mut Self::Connection,
                key: &str,
                order_id: &str,
            ) -> Result<bool, sqlx::Error> {
                let insert = "INSERT INTO order_keys (idempotency_key, order_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
                let done = query(insert).bind(key).bind(order_id).execute(connection).await?;
                Ok(done.rows_affected() == 1)
            }

            async fn order_id(connection: &mut Self::Connection, key: &str) -> Result<String, sqlx::Error> {
                let select = "SELECT order_id FROM order_keys WHERE idempotency_key = $1";
                query_scalar(select).bind(key).fetch_one(connection).await
            }

            async fn insert_order(
                connection: &mut Self::Connection,
                order: &Order,
            ) -> Result<bool, sqlx::Error> {
                let insert = "INSERT INTO orders (order_id, email, total) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
                let insert = query(insert).bind(&order.order_id).bind(&order.email).bind(order.total);
                Ok(insert.execute(connection).await?.rows_affected() == 1)
            }

            async fn order(
                connection: &mut Self::Connection,
                order_id: &str,
            ) -> Result<Option<Order>, sqlx::Error> {
                let select = query_as("SELECT email, total FROM orders WHERE order_id = $1").bind(order_id);
                let found: Option<(String, i64)> = select.fetch_optional(connection).await?;
                Ok(found.map(|(email, total)| Order { order_id: order_id.to_owned(), email, total }))
            }

            async fn balance(
                connection: &mut Self::Connection,
                email: &str,
            ) -> Result<Option<i64>, sqlx::Error> {
                let select = query_scalar("SELECT balance FROM accounts WHERE email = $1").bind(email);
                select.fetch_optional(connection).await
            }

            async fn add(
                connection: &mut Self::Connection,
                email: &str,
                total: i64,
            ) -> Result<(), sqlx::Error> {
                let add = "INSERT INTO accounts AS account (email, balance) VALUES ($1, $2) \
                           ON CONFLICT (email) DO UPDATE SET balance = account.balance + excluded.balance";
                query(add).bind(email).bind(total).execute(connection).await.map(drop)
            }

            async fn publish(
                connection: &mut Self::Connection,
                outbox: &Outbox,
                event: &Outgoing,
            ) -> Result<(), SqlError> {
                outbox.publish(connection, event).await
            }
        }
    };
}

shop!(
    Sqlite,
    "BEGIN IMMEDIATE;
     CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, email TEXT NOT NULL, total INTEGER NOT NULL) STRICT;
     CREATE TABLE IF NOT EXISTS order_keys (idempotency_key TEXT PRIMARY KEY, order_id TEXT NOT NULL) STRICT;
     CREATE TABLE IF NOT EXISTS accounts (email TEXT PRIMARY KEY, balance INTEGER NOT NULL) STRICT;
     COMMIT"
);

// These are one transaction. Without the lock, processes that start at once would fail over IF NOT EXISTS.
#[cfg(feature = "postgres")]
shop!(
    Postgres,
    "SELECT pg_advisory_xact_lock(hashtextextended('checkout', 0));
     CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, email TEXT NOT NULL, total BIGINT NOT NULL);
     CREATE TABLE IF NOT EXISTS order_keys (idempotency_key TEXT PRIMARY KEY, order_id TEXT NOT NULL);
     CREATE TABLE IF NOT EXISTS accounts (email TEXT PRIMARY KEY, balance BIGINT NOT NULL)"
);

/// Where the tables are, by URL.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Sqlite(SqliteConnectOptions),
    #[cfg(feature = "postgres")]
    Postgres(PgConnectOptions),
}

/// # Errors
/// When the URL cannot be used. They do not show it: it may have a password.
pub(crate) fn by_url(url: &str) -> Result<Place, String> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "sqlite" if url.contains(":memory:") => {
            Err("each connection would have an SQLite of its own in memory: name a file".to_owned())
        }
        "sqlite" => {
            let options = SqliteConnectOptions::from_str(url).map_err(|_| unreadable())?;
            Ok(Place::Sqlite(options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal)))
        }
        // With anything else behind the colon the driver takes all of it for the name of a database, which is shown: a
        // password as well.
        "postgres" | "postgresql" if !url.contains("://") => Err(KNOWN.to_owned()),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            let options = PgConnectOptions::from_str(url).map_err(|_| unreadable())?;
            Ok(Place::Postgres(options))
        }
        #[cfg(not(feature = "postgres"))]
        "postgres" | "postgresql" => {
            Err("this URL needs `cargo run -p checkout --features postgres`".to_owned())
        }
        _ => Err(KNOWN.to_owned()),
    }
}

const KNOWN: &str = "the database's URL begins with sqlite: or postgres://";

fn unreadable() -> String {
    "the database's URL cannot be read".to_owned()
}

/// Connects and creates what is missing. Nobody waits for a connection for longer than `patience` afterwards.
pub(crate) async fn open<DB: Shop>(
    options: <DB::Connection as sqlx::Connection>::Options,
    patience: Duration,
) -> Result<Pool<DB>, BoxError> {
    let pool = PoolOptions::<DB>::new().max_connections(CONNECTIONS).acquire_timeout(patience);
    let pool = pool.connect_with(options).await?;
    let mut connection = pool.acquire().await?;
    migrate::<DB>(&mut connection, &Tables::new()).await?;
    DB::create(&mut connection).await?;
    drop(connection);
    Ok(pool)
}
