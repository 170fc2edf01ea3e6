//! The outbox in an SQLite file.
//!
//! The file has one shard, and whoever holds the lock of a file beside it owns that. The operating system frees the lock of
//! a process that dies.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::PathBuf,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, Pool, Sqlite, SqliteConnection};

use super::{
    rows::{self, millis},
    session::{CHECKS, Lag, Limit, Session, Settled},
};
use crate::{Tables, outbox::row::Row};

/// Rows that are deleted from the history at once.
const FORGOTTEN: i64 = 1_000;
/// Rows that are freed at once: others cannot write meanwhile.
const FREED: i64 = 2_000;
pub(crate) const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";

#[derive(Debug)]
pub struct SqliteSession {
    connection: SqliteConnection,
    tables: Tables,
    /// None for a database in memory, which nobody shares.
    lock: Option<PathBuf>,
    owned: Option<File>,
}

impl SqliteSession {
    fn sql(&self, sql: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.tables.in_sql(&sql.replace("NOW()", NOW)))
    }

    /// Whether this session is the one that publishes.
    fn lock(&mut self) -> Result<bool, sqlx::Error> {
        let Some(path) = self.lock.as_ref().filter(|_| self.owned.is_none()) else { return Ok(true) };
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        match file.try_lock() {
            Ok(()) => self.owned = Some(file),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(true)
    }

    /// The first rows that wait, and which of those are behind a failed one.
    pub(crate) async fn look(&mut self, limit: Limit) -> Result<(Vec<Row>, Vec<i64>), sqlx::Error> {
        let sql = self.sql(
            "SELECT o.id, o.destination, o.message_id, o.message_key, o.headers, o.payload, \
               CAST(o.attempts AS BIGINT) AS attempts, \
               o.error IS NOT NULL AS had_failed, o.message_key IS NOT NULL AND EXISTS (SELECT 1 FROM consumer_outbox b WHERE b.state IN (1, 2) \
                 AND b.destination = o.destination AND b.message_key = o.message_key AND b.id < o.id) AS behind \
             FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM \
                 (SELECT id, coalesce(length(payload), 0) AS size FROM consumer_outbox INDEXED BY consumer_outbox_waiting \
                  WHERE state = 0 ORDER BY id LIMIT $1)) sized \
             JOIN consumer_outbox o ON o.id = sized.id WHERE sized.before < $2 ORDER BY o.id",
        );
        let rows = sqlx::query(sql)
            .bind(i64::from(limit.rows))
            .bind(i64::try_from(limit.bytes).unwrap_or(i64::MAX))
            .fetch_all(&mut self.connection)
            .await?;
        rows::sorted(&rows)
    }

    /// Marks rows as held. It looks again: an administrator may have freed them since, and nothing would do so later.
    pub(crate) async fn mark(&mut self, behind: &[i64]) -> Result<(), sqlx::Error> {
        let sql = self.sql(
            "UPDATE consumer_outbox AS o SET state = 1 WHERE id IN (SELECT value FROM json_each($1)) AND state = 0 \
             AND EXISTS (SELECT 1 FROM consumer_outbox b WHERE b.state IN (1, 2) \
               AND b.destination = o.destination AND b.message_key = o.message_key AND b.id < o.id)",
        );
        sqlx::query(sql).bind(list(behind)).execute(&mut self.connection).await.map(drop)
    }
}

impl Session for SqliteSession {
    type Database = Sqlite;

    const MOST: usize = 1;

    async fn open(pool: &Pool<Sqlite>, tables: &Tables) -> Result<Self, sqlx::Error> {
        let options = pool.connect_options();
        let file = options.get_filename();
        let name = file.to_string_lossy();
        let is_file =
            !name.is_empty() && !name.contains(":memory:") && !name.starts_with("file:sqlx-in-memory");
        let connection = SqliteConnection::connect_with(&options).await?;
        let lock = if is_file {
            // By whatever path it is reached, and it is there now.
            let mut path = file.canonicalize()?.into_os_string();
            path.push(format!(".{}lock", tables.bare("consumer_outbox_")));
            Some(PathBuf::from(path))
        } else {
            None
        };
        Ok(Self { connection, tables: tables.clone(), lock, owned: None })
    }

    async fn check(&mut self) -> Result<(), sqlx::Error> {
        for sql in CHECKS {
            sqlx::query(self.sql(sql)).execute(&mut self.connection).await?;
        }
        // A file that is read only says so when a write begins, and not sooner.
        self.connection.begin_with("BEGIN IMMEDIATE").await?.rollback().await
    }

    async fn own(&mut self, _: u16) -> Result<Option<u16>, sqlx::Error> {
        let sql = self.sql("SELECT EXISTS (SELECT 1 FROM consumer_outbox INDEXED BY consumer_outbox_waiting WHERE state = 0)");
        let waiting: bool = sqlx::query_scalar(sql).fetch_one(&mut self.connection).await?;
        Ok(if waiting && self.lock()? { Some(0) } else { None })
    }

    async fn take(&mut self, _: u16, limit: Limit) -> Result<Option<Vec<Row>>, sqlx::Error> {
        let (free, behind) = self.look(limit).await?;
        if free.is_empty() && behind.is_empty() {
            return Ok(None);
        }
        if !behind.is_empty() {
            self.mark(&behind).await?;
        }
        Ok(Some(free))
    }

    async fn settle(&mut self, settled: &Settled, keep: bool) -> Result<(), sqlx::Error> {
        let published = self.sql(if keep {
            "UPDATE consumer_outbox SET state = 3, error = NULL, published_at = NOW() \
             WHERE id IN (SELECT value FROM json_each($1)) AND state <> 3"
        } else {
            "DELETE FROM consumer_outbox WHERE id IN (SELECT value FROM json_each($1))"
        });
        let failed = self.sql(
            "UPDATE consumer_outbox SET state = 2, attempts = $2, error = $3, due_at = NOW() + $4 \
             WHERE id = $1 AND state = 0",
        );
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(published).bind(list(&settled.published)).execute(&mut *transaction).await?;
        for row in &settled.failed {
            let query =
                sqlx::query(AssertSqlSafe(failed.0.clone())).bind(row.id).bind(i64::from(row.attempts));
            query.bind(&row.error).bind(row.wait.map(millis)).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn release(&mut self, settled: &Settled) -> Result<u64, sqlx::Error> {
        let mut freed = 0;
        for (destination, key) in &settled.released {
            // `state IN (1, 2)` is what the index says, word for word: SQLite does not conclude it from `state = 1`.
            let sql = self.sql(
                "UPDATE consumer_outbox SET state = 0 WHERE id IN (SELECT id FROM consumer_outbox \
                 WHERE state IN (1, 2) AND state = 1 AND destination = $1 AND message_key = $2 ORDER BY id LIMIT $3)",
            );
            let query = sqlx::query(sql).bind(destination).bind(key).bind(FREED);
            freed += query.execute(&mut self.connection).await?.rows_affected();
        }
        Ok(freed)
    }

    async fn disown(&mut self, _: u16) -> Result<(), sqlx::Error> {
        // Kept as long as the session: taking turns would only cost.
        Ok(())
    }

    async fn retry_due(&mut self) -> Result<u64, sqlx::Error> {
        let sql = self.sql(
            "UPDATE consumer_outbox SET state = 0, due_at = NULL WHERE id IN \
             (SELECT id FROM consumer_outbox WHERE state = 2 AND due_at <= NOW() ORDER BY due_at LIMIT $1)",
        );
        Ok(sqlx::query(sql).bind(FREED).execute(&mut self.connection).await?.rows_affected())
    }

    async fn forget(&mut self, after: Duration) -> Result<u64, sqlx::Error> {
        let sql = self.sql(
            "DELETE FROM consumer_outbox WHERE id IN (SELECT id FROM consumer_outbox WHERE state = 3 \
             AND published_at < NOW() - $1 ORDER BY published_at LIMIT $2)",
        );
        let query = sqlx::query(sql).bind(millis(after)).bind(FORGOTTEN);
        Ok(query.execute(&mut self.connection).await?.rows_affected())
    }

    async fn lag(&mut self) -> Result<Lag, sqlx::Error> {
        let sql = self.sql(
            "SELECT (SELECT count(*) FROM consumer_outbox WHERE state = 0) \
                  + (SELECT count(*) FROM consumer_outbox WHERE state = 2 AND due_at IS NOT NULL) AS waiting, \
             (SELECT count(*) FROM consumer_outbox WHERE state IN (1, 2) AND state = 1) AS held, \
             (SELECT count(*) FROM consumer_outbox WHERE state IN (1, 2) AND state = 2 AND due_at IS NULL) AS quarantined, \
             (SELECT max(age) FROM ( \
               SELECT NOW() - created_at AS age FROM consumer_outbox WHERE id = (SELECT min(id) FROM consumer_outbox WHERE state = 0) \
               UNION ALL SELECT NOW() - min(created_at) FROM consumer_outbox WHERE state = 2 AND due_at IS NOT NULL)) AS oldest",
        );
        let row = sqlx::query(sql).fetch_one(&mut self.connection).await?;
        rows::lag(&row)
    }

    async fn has_work(&mut self) -> Result<bool, sqlx::Error> {
        let sql = self.sql(rows::HAS_WORK);
        sqlx::query_scalar(sql).fetch_one(&mut self.connection).await
    }
}

/// Ids as a JSON array, for `json_each`.
fn list(ids: &[i64]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    format!("[{}]", ids.join(","))
}
