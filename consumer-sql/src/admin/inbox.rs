//! The inbox as an operator sees it.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use consumer_core::dedup::StoreKey;
use sqlx::Pool;

use super::{
    count, millis,
    statement::{Statement, Value},
    time,
};
use crate::{Database, SqlError, Tables};

/// Records in one statement: writers wait for one another no longer than it takes.
const PORTION: u32 = 500;

/// What an operator does with an inbox: look, and delete records.
///
/// A record says that the effect of a message is in the database. Without it the message takes effect again if it comes again.
#[must_use]
pub struct InboxAdmin<DB: Database> {
    pool: Pool<DB>,
    tables: Tables,
}

/// The records of one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxStats {
    /// The consumer.
    pub consumer: String,
    /// How many records there are.
    pub count: u64,
    /// When the oldest was written.
    pub oldest: SystemTime,
    /// When the newest was written.
    pub newest: SystemTime,
}

/// A message whose effect is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxRecord {
    /// The consumer.
    pub consumer: String,
    /// The idempotency key.
    pub key: Vec<u8>,
    /// When it was written.
    pub recorded_at: SystemTime,
}

/// Which records of a consumer are deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InboxPurge {
    /// Those that were written longer ago than this.
    OlderThan(Duration),
    /// The one of this idempotency key.
    Key(Vec<u8>),
}

impl<DB: Database> InboxAdmin<DB> {
    /// Of the inbox with the default names.
    pub fn new(pool: Pool<DB>) -> Self {
        Self { pool, tables: Tables::new() }
    }

    /// Sets where the tables are.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
        self
    }

    /// The records by consumer. It counts, and so reads the whole table; it changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn stats(&self) -> Result<Vec<InboxStats>, SqlError> {
        let at = DB::millis("recorded_at");
        let statement = Statement::new(format!(
            "SELECT consumer, count(*), min({at}), max({at}) FROM consumer_inbox GROUP BY consumer ORDER BY consumer"
        ));
        let stats = async {
            let rows = DB::fetch_rows(&mut *self.pool.acquire().await?, self.named(statement)).await?;
            let of = |row| {
                Ok(InboxStats {
                    consumer: DB::text(row, 0)?.unwrap_or_default(),
                    count: count(DB::int(row, 1)?),
                    oldest: time(DB::int(row, 2)?.unwrap_or_default()),
                    newest: time(DB::int(row, 3)?.unwrap_or_default()),
                })
            };
            rows.iter().map(of).collect::<Result<Vec<_>, sqlx::Error>>()
        };
        stats.await.map_err(|error| self.unread(error))
    }

    /// The newest records, of all consumers or of one, or the one of a key. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn list(
        &self,
        consumer: Option<&str>,
        key: Option<&[u8]>,
        limit: u64,
    ) -> Result<Vec<InboxRecord>, SqlError> {
        let at = DB::millis("recorded_at");
        let columns = format!("SELECT consumer, idempotency_key, {at} FROM consumer_inbox WHERE 1 = 1");
        let mut statement = Statement::new(columns);
        if let Some(consumer) = consumer {
            statement = statement.push(" AND consumer = ").bind(Value::Text(consumer.to_owned()));
        }
        statement = match (consumer, key) {
            (Some(consumer), Some(key)) => statement.push(" AND key_hash = ").bind(hash(consumer, key)),
            (None, Some(key)) => statement.push(" AND idempotency_key = ").bind(Value::Bytes(key.to_owned())),
            (_, None) => statement,
        };
        let limit = Value::Int(i64::try_from(limit).unwrap_or(i64::MAX));
        let statement = self.named(statement.push(" ORDER BY recorded_at DESC LIMIT ").bind(limit));
        let records = async {
            let rows = DB::fetch_rows(&mut *self.pool.acquire().await?, statement).await?;
            let of = |row| {
                Ok(InboxRecord {
                    consumer: DB::text(row, 0)?.unwrap_or_default(),
                    key: DB::bytes(row, 1)?.unwrap_or_default(),
                    recorded_at: time(DB::int(row, 2)?.unwrap_or_default()),
                })
            };
            rows.iter().map(of).collect::<Result<Vec<_>, sqlx::Error>>()
        };
        records.await.map_err(|error| self.unread(error))
    }

    /// How many records [`purge`](Self::purge) would delete. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn count(&self, consumer: &str, what: &InboxPurge) -> Result<u64, SqlError> {
        let number = async {
            let mut connection = self.pool.acquire().await?;
            let statement = Statement::new("SELECT count(*) FROM consumer_inbox WHERE ");
            let statement = match what {
                InboxPurge::Key(key) => statement.push("key_hash = ").bind(hash(consumer, key)),
                InboxPurge::OlderThan(age) => {
                    let before = self.before(&mut connection, *age).await?;
                    let statement = statement.push("consumer = ").bind(Value::Text(consumer.to_owned()));
                    statement.push(" AND recorded_at < ").bind_time::<DB>(before)
                }
            };
            let rows = DB::fetch_rows(&mut connection, self.named(statement)).await?;
            Ok(count(rows.first().map(|row| DB::int(row, 0)).transpose()?.flatten()))
        };
        number.await.map_err(|error| self.unread(error))
    }

    /// Deletes records of a consumer, in small portions that nobody waits long for. **Their messages take effect again if they
    /// come again.** How many there were.
    ///
    /// # Errors
    /// As the database says. What was deleted before that stays deleted; trying again is safe.
    ///
    /// # Cancel safety
    /// A part of the records may be deleted.
    pub async fn purge(&self, consumer: &str, what: &InboxPurge) -> Result<u64, SqlError> {
        let purged = match what {
            InboxPurge::Key(key) => self.purge_key(consumer, key).await,
            InboxPurge::OlderThan(age) => self.purge_old(consumer, *age).await,
        };
        let doing = format_args!("records of the inbox {} cannot be deleted", self.tables);
        purged.map_err(|error| SqlError::driver(doing, error))
    }

    async fn purge_key(&self, consumer: &str, key: &[u8]) -> Result<u64, sqlx::Error> {
        let statement =
            Statement::new("DELETE FROM consumer_inbox WHERE key_hash = ").bind(hash(consumer, key));
        DB::run_statement(&mut *self.pool.acquire().await?, self.named(statement)).await
    }

    async fn purge_old(&self, consumer: &str, age: Duration) -> Result<u64, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let before = self.before(&mut connection, age).await?;
        let (mut deleted, mut from) = (0, 0);
        loop {
            // From where the last portion ended: the index is by time alone, and others have records there too.
            let of_consumer = "DELETE FROM consumer_inbox WHERE key_hash IN \
                               (SELECT key_hash FROM consumer_inbox WHERE consumer = ";
            let statement = Statement::new(of_consumer).bind(Value::Text(consumer.to_owned()));
            let statement = statement.push(" AND recorded_at >= ").bind_time::<DB>(from);
            let statement = statement.push(" AND recorded_at < ").bind_time::<DB>(before);
            let statement = statement.push(&format!(
                " ORDER BY recorded_at LIMIT {PORTION}{}) RETURNING {}",
                DB::LOCKED_IF_FREE,
                DB::millis("recorded_at")
            ));
            let rows = DB::fetch_rows(&mut connection, self.named(statement)).await?;
            if rows.is_empty() {
                return Ok(deleted);
            }
            deleted += rows.len() as u64;
            for row in &rows {
                from = from.max(DB::int(row, 0)?.unwrap_or_default());
            }
            tokio::time::sleep(DB::PAUSE).await;
        }
    }

    /// By the clock of the database, which the records are from.
    async fn before(&self, connection: &mut DB::Connection, age: Duration) -> Result<i64, sqlx::Error> {
        let now = DB::fetch_rows(connection, Statement::new(format!("SELECT {}", DB::NOW))).await?;
        let now = now.first().map(|row| DB::int(row, 0)).transpose()?.flatten().unwrap_or_default();
        Ok(now.saturating_sub(millis(age)))
    }

    fn named(&self, mut statement: Statement) -> Statement {
        statement.text = self.tables.in_sql(&statement.text);
        statement
    }

    fn unread(&self, error: sqlx::Error) -> SqlError {
        SqlError::driver(format_args!("the inbox {} cannot be read", self.tables), error)
    }
}

fn hash(consumer: &str, key: &[u8]) -> Value {
    Value::Bytes(StoreKey::new(consumer.into(), key.to_vec().into()).hash().to_be_bytes().to_vec())
}

impl<DB: Database> fmt::Debug for InboxAdmin<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxAdmin").field("tables", &self.tables).finish_non_exhaustive()
    }
}
