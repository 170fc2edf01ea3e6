//! The outbox as an operator sees it, and what is done about rows that cannot be sent.

use std::{collections::BTreeSet, fmt, time::Duration};

use sqlx::Pool;

use super::{
    count,
    filter::{OutboxFilter, OutboxState},
    millis,
    row::{OutboxMessage, OutboxRow},
    statement::{Statement, Value},
};
use crate::{Database, Lag, SqlError, Tables, inbox::transaction::Open, relay::Session};

/// Rows in one transaction.
const PORTION: usize = 500;
/// Errors that are told.
const ERRORS: i64 = 20;
/// Characters of an error by which it is counted.
const ERROR_SHOWN: i64 = 300;
const WAIT: Duration = Duration::from_secs(30);

/// What an operator does with an outbox: look, have rows tried again, delete rows.
///
/// What changes rows of a key is serialised with the relays. On PostgreSQL it waits until no relay has the shard of the key,
/// at most for the [`wait`](Self::wait), and keeps them off it for one small transaction; on SQLite it writes between two of
/// theirs. So relays need not be stopped.
#[must_use]
pub struct OutboxAdmin<DB: Database> {
    pool: Pool<DB>,
    tables: Tables,
    wait: Duration,
}

/// What an outbox holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStats {
    /// As the relay measures it.
    pub lag: Lag,
    /// Rows by destination and state, in that order.
    pub rows: Vec<OutboxCount>,
    /// The most frequent errors of rows that have failed, at most 20, the most frequent first. They are told apart by their
    /// first 300 characters.
    pub errors: Vec<OutboxErrors>,
}

/// Rows of one destination in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxCount {
    /// The topic or queue.
    pub destination: String,
    /// Where they stand.
    pub state: OutboxState,
    /// How many.
    pub count: u64,
}

/// Rows that failed with one error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxErrors {
    /// The topic or queue.
    pub destination: String,
    /// The error.
    pub error: String,
    /// How many.
    pub count: u64,
}

/// What may be deleted from an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxPurge {
    /// Quarantined rows: their messages are never published.
    Quarantined,
    /// The history, as far as it was published longer ago than this.
    Published(Duration),
    /// Rows that were not published, whatever their state: their messages are lost. One that is on its way to the broker at that
    /// moment may still arrive.
    Unpublished,
}

impl OutboxPurge {
    /// The rows that were not published; none where it is the history.
    fn unpublished(self) -> Option<&'static str> {
        match self {
            Self::Quarantined => Some("state IN (1, 2) AND state = 2 AND due_at IS NULL"),
            Self::Unpublished => Some("state IN (0, 1, 2)"),
            Self::Published(_) => None,
        }
    }
}

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxChange {
    /// Rows that were meant.
    pub rows: u64,
    /// Rows that were held behind them, and will be published now.
    pub freed: u64,
}

impl<DB: Database> OutboxAdmin<DB> {
    /// Of the outbox with the default names.
    pub fn new(pool: Pool<DB>) -> Self {
        Self { pool, tables: Tables::new(), wait: WAIT }
    }

    /// Sets where the tables are.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
        self
    }

    /// Sets how long relays are waited for that have a shard (PostgreSQL; 30 s).
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// What is there. It counts, and so reads the whole table; it changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn stats(&self) -> Result<OutboxStats, SqlError> {
        self.stats_of().await.map_err(|error| self.unread(error))
    }

    async fn stats_of(&self) -> Result<OutboxStats, sqlx::Error> {
        let lag = DB::Session::open(&self.pool, &self.tables).await?.lag().await?;
        let by_state = Statement::new(format!(
            "SELECT destination, {code}, count(*) FROM consumer_outbox GROUP BY 1, 2 ORDER BY 1, 2",
            code = OutboxState::CODE
        ));
        let errors = Statement::new(format!(
            "SELECT destination, substr(error, 1, {ERROR_SHOWN}), count(*) FROM consumer_outbox \
             WHERE state IN (1, 2) AND state = 2 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {ERRORS}"
        ));
        let mut connection = self.pool.acquire().await?;
        let mut stats = OutboxStats { lag, ..OutboxStats::default() };
        for row in DB::fetch_rows(&mut connection, self.named(by_state)).await? {
            stats.rows.push(OutboxCount {
                destination: DB::text(&row, 0)?.unwrap_or_default(),
                state: OutboxState::of_code(DB::int(&row, 1)?),
                count: count(DB::int(&row, 2)?),
            });
        }
        for row in DB::fetch_rows(&mut connection, self.named(errors)).await? {
            stats.errors.push(OutboxErrors {
                destination: DB::text(&row, 0)?.unwrap_or_default(),
                error: DB::text(&row, 1)?.unwrap_or_default(),
                count: count(DB::int(&row, 2)?),
            });
        }
        Ok(stats)
    }

    /// The first rows, by their numbers. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn list(&self, filter: &OutboxFilter, limit: u64) -> Result<Vec<OutboxRow>, SqlError> {
        let columns = OutboxRow::columns::<DB>();
        let statement = Statement::new(format!("SELECT {columns} FROM consumer_outbox WHERE 1 = 1"));
        let limit = Value::Int(i64::try_from(limit).unwrap_or(i64::MAX));
        let statement = filter.and::<DB>(statement).push(" ORDER BY id LIMIT ").bind(limit);
        let rows = async {
            let rows = DB::fetch_rows(&mut *self.pool.acquire().await?, self.named(statement)).await?;
            rows.iter().map(OutboxRow::read::<DB>).collect::<Result<Vec<_>, _>>()
        };
        rows.await.map_err(|error| self.unread(error))
    }

    /// One row with headers and payload. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn show(&self, id: i64) -> Result<Option<OutboxMessage>, SqlError> {
        let columns = OutboxRow::columns::<DB>();
        let statement =
            Statement::new(format!("SELECT {columns}, headers, payload FROM consumer_outbox WHERE id = "));
        let statement = self.named(statement.bind(Value::Int(id)));
        let message = async {
            let rows = DB::fetch_rows(&mut *self.pool.acquire().await?, statement).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            Ok(Some(OutboxMessage {
                row: OutboxRow::read::<DB>(row)?,
                headers: DB::text(row, OutboxRow::COLUMNS)?.unwrap_or_default(),
                payload: DB::bytes(row, OutboxRow::COLUMNS + 1)?,
            }))
        };
        message.await.map_err(|error| self.unread(error))
    }

    /// How many rows fit. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn count(&self, filter: &OutboxFilter) -> Result<u64, SqlError> {
        let statement = Statement::new("SELECT count(*) FROM consumer_outbox WHERE 1 = 1");
        let statement = self.named(filter.and::<DB>(statement));
        let number = async {
            let rows = DB::fetch_rows(&mut *self.pool.acquire().await?, statement).await?;
            Ok(count(rows.first().map(|row| DB::int(row, 0)).transpose()?.flatten()))
        };
        number.await.map_err(|error| self.unread(error))
    }

    /// Has quarantined rows, and those that are tried again later, tried at once, as if they had never failed. What is held
    /// behind them follows them, in its order.
    ///
    /// # Errors
    /// With `is_unavailable()` when a relay has a shard for longer than the [`wait`](Self::wait); else as the database says.
    /// What was changed before that stays changed; trying again is safe.
    ///
    /// # Cancel safety
    /// A part of the rows may be changed, each together with what is held behind it.
    pub async fn requeue(&self, filter: &OutboxFilter) -> Result<OutboxChange, SqlError> {
        let change = "UPDATE consumer_outbox SET state = 0, attempts = 0, due_at = NULL, error = NULL";
        let changed = self.by_shard("state IN (1, 2) AND state = 2", filter, change).await;
        changed.map_err(|error| self.unchanged(error))
    }

    /// Deletes rows. What is held behind them is free.
    ///
    /// # Errors
    /// As [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    /// A part of the rows may be deleted, each together with the freeing of what is held behind it.
    pub async fn purge(&self, filter: &OutboxFilter, what: OutboxPurge) -> Result<OutboxChange, SqlError> {
        let purged = match what.unpublished() {
            Some(which) => self.by_shard(which, filter, "DELETE FROM consumer_outbox").await,
            None => self.forget(filter, what).await,
        };
        purged.map_err(|error| self.unchanged(error))
    }

    /// How many rows [`purge`](Self::purge) would delete. It changes nothing.
    ///
    /// # Errors
    /// As the database says. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn purgeable(&self, filter: &OutboxFilter, what: OutboxPurge) -> Result<u64, SqlError> {
        let number = async {
            let mut connection = self.pool.acquire().await?;
            let which = self.which(&mut connection, what).await?;
            let statement = Statement::new("SELECT count(*) FROM consumer_outbox WHERE ");
            let statement = filter.and::<DB>(which(statement));
            let rows = DB::fetch_rows(&mut connection, self.named(statement)).await?;
            Ok(count(rows.first().map(|row| DB::int(row, 0)).transpose()?.flatten()))
        };
        number.await.map_err(|error| self.unread(error))
    }

    /// The condition of what may be deleted, by the clock of the database.
    async fn which(
        &self,
        connection: &mut DB::Connection,
        what: OutboxPurge,
    ) -> Result<impl Fn(Statement) -> Statement + use<DB>, sqlx::Error> {
        let mut before = 0;
        if let OutboxPurge::Published(age) = what {
            let now = DB::fetch_rows(connection, Statement::new(format!("SELECT {}", DB::NOW))).await?;
            let now = now.first().map(|row| DB::int(row, 0)).transpose()?.flatten().unwrap_or_default();
            before = now.saturating_sub(millis(age));
        }
        Ok(move |statement: Statement| match what.unpublished() {
            Some(which) => statement.push(which),
            None => statement.push("state = 3 AND published_at < ").bind_time::<DB>(before),
        })
    }

    /// The history, which nothing is held behind.
    async fn forget(&self, filter: &OutboxFilter, what: OutboxPurge) -> Result<OutboxChange, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let which = self.which(&mut connection, what).await?;
        let mut change = OutboxChange::default();
        loop {
            let published = "DELETE FROM consumer_outbox WHERE id IN (SELECT id FROM consumer_outbox WHERE ";
            let statement = filter.and::<DB>(which(Statement::new(published)));
            let locked = DB::LOCKED_IF_FREE;
            let statement = statement.push(&format!(" ORDER BY published_at LIMIT {PORTION}{locked})"));
            let deleted = DB::run_statement(&mut connection, self.named(statement)).await?;
            change.rows += deleted;
            if deleted == 0 {
                return Ok(change);
            }
            tokio::time::sleep(DB::PAUSE).await;
        }
    }

    /// Rows without a key hold nothing up, and need no lock.
    async fn by_shard(
        &self,
        which: &str,
        filter: &OutboxFilter,
        what: &str,
    ) -> Result<OutboxChange, sqlx::Error> {
        let shards = format!(
            "SELECT DISTINCT {} FROM consumer_outbox WHERE message_key IS NOT NULL AND {which}",
            DB::SHARD
        );
        let shards = self.named(filter.and::<DB>(Statement::new(shards)).push(" ORDER BY 1"));
        let shards = DB::fetch_rows(&mut *self.pool.acquire().await?, shards).await?;
        let shards = shards.iter().map(|row| DB::int(row, 0)).collect::<Result<Vec<_>, _>>()?;
        let mut change = OutboxChange::default();
        for shard in std::iter::once(None).chain(shards) {
            // Behind the last one: what fails again meanwhile is not met twice.
            let mut behind = Some(0);
            while let Some(last) = behind {
                behind = self.portion(shard, last, which, filter, what, &mut change).await?;
                tokio::time::sleep(DB::PAUSE).await;
            }
        }
        Ok(change)
    }

    /// The rows behind `last` in one transaction; the last of them, unless there are none.
    async fn portion(
        &self,
        shard: Option<i64>,
        last: i64,
        which: &str,
        filter: &OutboxFilter,
        what: &str,
        change: &mut OutboxChange,
    ) -> Result<Option<i64>, sqlx::Error> {
        // Given up while it begins, sqlx's own would go back to the pool with an open transaction.
        let mut open = Open::begin(&self.pool, None).await?;
        let transaction = open.connection();
        let of_shard = match shard {
            Some(shard) => {
                // Else a relay that has just seen a failed row could mark others as held behind it when it is gone.
                DB::lock(transaction, &self.tables, shard, self.wait).await?;
                format!("message_key IS NOT NULL AND {} = {shard}", DB::SHARD)
            }
            None => "message_key IS NULL".to_owned(),
        };
        let rows = format!(
            "SELECT id, destination, message_key FROM consumer_outbox WHERE {of_shard} AND {which} AND id > {last}"
        );
        let rows = filter.and::<DB>(Statement::new(rows));
        let rows = rows.push(&format!(" ORDER BY id LIMIT {PORTION}{}", DB::LOCKED));
        let rows = DB::fetch_rows(transaction, self.named(rows)).await?;
        let (mut ids, mut lanes) = (Vec::with_capacity(rows.len()), BTreeSet::new());
        for row in &rows {
            ids.push(DB::int(row, 0)?.unwrap_or_default());
            if let Some(key) = DB::bytes(row, 2)? {
                lanes.insert((DB::text(row, 1)?.unwrap_or_default(), key));
            }
        }
        let Some(last) = ids.last().copied() else {
            open.discard();
            return Ok(None);
        };
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        let statement = Statement::new(format!("{what} WHERE id IN ({})", ids.join(", ")));
        let rows = DB::run_statement(transaction, self.named(statement)).await?;
        let mut freed = 0;
        for (destination, key) in lanes {
            freed += DB::run_statement(transaction, self.named(free(destination, key))).await?;
        }
        open.commit().await?;
        change.rows += rows;
        change.freed += freed;
        Ok(Some(last))
    }

    fn named(&self, mut statement: Statement) -> Statement {
        statement.text = self.tables.in_sql(&statement.text);
        statement
    }

    fn unread(&self, error: sqlx::Error) -> SqlError {
        SqlError::driver(format_args!("the outbox {} cannot be read", self.tables), error)
    }

    fn unchanged(&self, error: sqlx::Error) -> SqlError {
        SqlError::driver(format_args!("the outbox {} cannot be changed", self.tables), error)
    }
}

/// What is held in a lane, up to the next row of it that has failed.
fn free(destination: String, key: Vec<u8>) -> Statement {
    // `state IN (1, 2)` is what the index says, word for word: SQLite does not conclude it from `state = 1`.
    Statement::new(
        "UPDATE consumer_outbox SET state = 0 WHERE state IN (1, 2) AND state = 1 AND destination = ",
    )
    .bind(Value::Text(destination))
    .push(" AND message_key = ")
    .bind(Value::Bytes(key))
    .push(
        " AND id < coalesce((SELECT min(b.id) FROM consumer_outbox b WHERE b.state IN (1, 2) AND b.state = 2 \
             AND b.destination = $1 AND b.message_key = $2), 9223372036854775807)",
    )
}

impl<DB: Database> fmt::Debug for OutboxAdmin<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxAdmin").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl fmt::Display for OutboxChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} freed behind them", self.rows, self.freed)
    }
}
