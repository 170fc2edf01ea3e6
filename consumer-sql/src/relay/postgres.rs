//! The outbox in PostgreSQL.
//!
//! A shard is owned by a session's advisory lock, in its form that does not wait (one that waits would keep the vacuum from
//! what was deleted since). No transaction is open while rows are published, and no row is locked: skipping one that is
//! locked would let later ones of its key pass.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Pool, Postgres,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::sync::watch;

use super::{
    rows::{self, millis},
    session::{CHECKS, Failed, Lag, Limit, Session, Settled},
};
use crate::{Tables, outbox::row::Row};

/// As the column `shard` is computed.
const SHARDS: u16 = 32;
/// Rows that are deleted from the history at once.
const FORGOTTEN: i64 = 1_000;
/// Rows that are freed at once.
const FREED: i64 = 5_000;
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Everything here looks rows up by an index, also when the planner believes that the table is as small as it was before a
/// backlog came: it would rather read and sort all of that. (For the same reason `take` names its shard by a range and has it
/// in the order, or the planner would walk along the ids, past those of all other shards.)
const PLANS: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

/// A relay whose machine is gone must not keep its shards for the two hours that a server waits by default.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];

/// The key of the lock of shard `$1`: no other table has this one's oid.
pub(crate) const LOCK: &str = "(('consumer_outbox'::regclass::oid::bigint << 8) | $1::bigint)";

#[derive(Debug)]
pub struct PostgresSession {
    connection: PgConnection,
    tables: Tables,
}

impl PostgresSession {
    fn sql(&self, sql: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.tables.in_sql(sql))
    }

    async fn lock(&mut self, function: &str, shard: u16) -> Result<bool, sqlx::Error> {
        let sql = self.sql(&format!("SELECT {function}({LOCK})"));
        sqlx::query_scalar(sql).bind(i64::from(shard)).fetch_one(&mut self.connection).await
    }

    /// The first rows of a shard that wait, and which of those are behind a failed one.
    pub(crate) async fn look(
        &mut self,
        shard: u16,
        limit: Limit,
    ) -> Result<(Vec<Row>, Vec<i64>), sqlx::Error> {
        let sql = self.sql(
            "SELECT o.id, o.destination, o.message_id, o.message_key, o.headers, o.payload, \
               CAST(o.attempts AS BIGINT) AS attempts, \
               o.error IS NOT NULL AS had_failed, o.message_key IS NOT NULL AND EXISTS (SELECT 1 FROM consumer_outbox b WHERE b.state IN (1, 2) \
                 AND b.destination = o.destination AND b.message_key = o.message_key AND b.id < o.id) AS behind \
             FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM \
                 (SELECT id, coalesce(octet_length(payload), 0)::bigint AS size FROM consumer_outbox \
                  WHERE shard >= $1 AND shard <= $1 AND state = 0 ORDER BY shard, id LIMIT $2) first) sized \
             JOIN consumer_outbox o USING (id) WHERE sized.before < $3 ORDER BY o.id",
        );
        let rows = sqlx::query(sql)
            .bind(i16::try_from(shard).unwrap_or_default())
            .bind(i64::from(limit.rows))
            .bind(i64::try_from(limit.bytes).unwrap_or(i64::MAX))
            .fetch_all(&mut self.connection)
            .await?;
        rows::sorted(&rows)
    }

    /// Marks rows as held. What it was told is still true: nobody else frees rows of a shard that is owned, and a session
    /// that has lost its shard settles nothing any more.
    pub(crate) async fn mark(&mut self, behind: &[i64]) -> Result<(), sqlx::Error> {
        let sql = self.sql("UPDATE consumer_outbox SET state = 1 WHERE id = ANY($1) AND state = 0");
        sqlx::query(sql).bind(behind).execute(&mut self.connection).await.map(drop)
    }
}

impl Session for PostgresSession {
    type Database = Postgres;

    const MOST: usize = SHARDS as usize;

    async fn open(pool: &Pool<Postgres>, tables: &Tables) -> Result<Self, sqlx::Error> {
        // Of its own: what a session locks must not go back into a pool.
        let options = (*pool.connect_options()).clone().options(PLANS).options(KEEPALIVE);
        let connection = PgConnection::connect_with(&options).await?;
        Ok(Self { connection, tables: tables.clone() })
    }

    async fn check(&mut self) -> Result<(), sqlx::Error> {
        for sql in CHECKS {
            sqlx::query(self.sql(sql)).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    async fn own(&mut self, first: u16) -> Result<Option<u16>, sqlx::Error> {
        let sql = self.sql(
            "SELECT s::smallint FROM generate_series(0, $2 - 1) s \
             WHERE EXISTS (SELECT 1 FROM consumer_outbox WHERE shard = s AND state = 0) ORDER BY (s + $2 - $1) % $2",
        );
        let shards: Vec<i16> = sqlx::query_scalar(sql)
            .bind(i32::from(first % SHARDS))
            .bind(i32::from(SHARDS))
            .fetch_all(&mut self.connection)
            .await?;
        for shard in shards.into_iter().filter_map(|shard| u16::try_from(shard).ok()) {
            if self.lock("pg_try_advisory_lock", shard).await? {
                return Ok(Some(shard));
            }
        }
        Ok(None)
    }

    async fn take(&mut self, shard: u16, limit: Limit) -> Result<Option<Vec<Row>>, sqlx::Error> {
        let (free, behind) = self.look(shard, limit).await?;
        if free.is_empty() && behind.is_empty() {
            return Ok(None);
        }
        if !behind.is_empty() {
            self.mark(&behind).await?;
        }
        Ok(Some(free))
    }

    async fn settle(&mut self, settled: &Settled, keep: bool) -> Result<(), sqlx::Error> {
        let published = if keep {
            "UPDATE consumer_outbox SET state = 3, error = NULL, published_at = now() WHERE id = ANY($1) AND state <> 3"
        } else {
            "DELETE FROM consumer_outbox WHERE id = ANY($1)"
        };
        let published = self.sql(published);
        if settled.failed.is_empty() {
            sqlx::query(published).bind(&settled.published).execute(&mut self.connection).await?;
            return Ok(());
        }
        let failed = self.sql(
            "UPDATE consumer_outbox o SET state = 2, attempts = f.attempts, error = f.error, \
             due_at = now() + f.wait * interval '1 millisecond' \
             FROM UNNEST($1::bigint[], $2::int[], $3::text[], $4::bigint[]) AS f (id, attempts, error, wait) \
             WHERE o.id = f.id AND o.state = 0",
        );
        let mut transaction = self.connection.begin().await?;
        sqlx::query(published).bind(&settled.published).execute(&mut *transaction).await?;
        let (ids, attempts, errors, waits) = columns(&settled.failed);
        let query = sqlx::query(failed).bind(ids).bind(attempts).bind(errors).bind(waits);
        query.execute(&mut *transaction).await?;
        transaction.commit().await
    }

    async fn release(&mut self, settled: &Settled) -> Result<u64, sqlx::Error> {
        let mut freed = 0;
        for (destination, key) in &settled.released {
            let sql = self.sql(
                "UPDATE consumer_outbox SET state = 0 WHERE id IN (SELECT id FROM consumer_outbox \
                 WHERE state IN (1, 2) AND state = 1 AND destination = $1 AND message_key = $2 ORDER BY id LIMIT $3)",
            );
            let query = sqlx::query(sql).bind(destination).bind(key).bind(FREED);
            freed += query.execute(&mut self.connection).await?.rows_affected();
        }
        Ok(freed)
    }

    async fn disown(&mut self, shard: u16) -> Result<(), sqlx::Error> {
        self.lock("pg_advisory_unlock", shard).await.map(drop)
    }

    async fn retry_due(&mut self) -> Result<u64, sqlx::Error> {
        // Rows that somebody else works on come the next time: to wait for them could be a deadlock.
        let sql = self.sql(
            "UPDATE consumer_outbox SET state = 0, due_at = NULL WHERE id IN \
             (SELECT id FROM consumer_outbox WHERE state = 2 AND due_at <= now() ORDER BY due_at LIMIT $1 \
              FOR UPDATE SKIP LOCKED)",
        );
        Ok(sqlx::query(sql).bind(FREED).execute(&mut self.connection).await?.rows_affected())
    }

    async fn forget(&mut self, after: Duration) -> Result<u64, sqlx::Error> {
        let sql = self.sql(
            "DELETE FROM consumer_outbox WHERE id IN (SELECT id FROM consumer_outbox WHERE state = 3 \
             AND published_at < now() - $1 * interval '1 millisecond' ORDER BY published_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        );
        let query = sqlx::query(sql).bind(millis(after)).bind(FORGOTTEN);
        Ok(query.execute(&mut self.connection).await?.rows_affected())
    }

    async fn lag(&mut self) -> Result<Lag, sqlx::Error> {
        let sql = self.sql(
            "SELECT (SELECT count(*) FROM consumer_outbox WHERE state = 0) \
                  + (SELECT count(*) FROM consumer_outbox WHERE state = 2 AND due_at IS NOT NULL) AS waiting, \
             (SELECT count(*) FROM consumer_outbox WHERE state = 1) AS held, \
             (SELECT count(*) FROM consumer_outbox WHERE state = 2 AND due_at IS NULL) AS quarantined, \
             (extract(epoch FROM clock_timestamp() - least( \
               (SELECT min(created_at) FROM consumer_outbox WHERE state = 2 AND due_at IS NOT NULL), \
               (SELECT min(o.created_at) FROM generate_series(0, $1 - 1) s JOIN consumer_outbox o ON o.id = \
                 (SELECT min(id) FROM consumer_outbox WHERE shard = s AND state = 0)))) * 1000)::bigint AS oldest",
        );
        let row = sqlx::query(sql).bind(i32::from(SHARDS)).fetch_one(&mut self.connection).await?;
        rows::lag(&row)
    }

    async fn has_work(&mut self) -> Result<bool, sqlx::Error> {
        let sql = self.sql(rows::HAS_WORK);
        sqlx::query_scalar(sql).fetch_one(&mut self.connection).await
    }
}

type Columns<'a> = (Vec<i64>, Vec<i32>, Vec<&'a str>, Vec<Option<i64>>);

fn columns(failed: &[Failed]) -> Columns<'_> {
    let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in failed {
        columns.0.push(row.id);
        columns.1.push(i32::try_from(row.attempts).unwrap_or(i32::MAX));
        columns.2.push(&*row.error);
        columns.3.push(row.wait.map(millis));
    }
    columns
}

/// Wakes with every notification of the table's trigger, and after every reconnect: what came meanwhile was missed.
pub(crate) async fn listen(
    pool: Pool<Postgres>,
    tables: Tables,
    wake: watch::Sender<u64>,
    mut stop: watch::Receiver<bool>,
) {
    let channel = tables.bare("consumer_outbox");
    let listening = async {
        loop {
            if let Err(error) = hear(&pool, &channel, &wake).await {
                tracing::debug!(%error, "the relay does not hear of new rows, and only looks for them; trying again");
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = listening => {}
    }
}

async fn hear(pool: &Pool<Postgres>, channel: &str, wake: &watch::Sender<u64>) -> Result<(), sqlx::Error> {
    // A pool of its own: the listener keeps its connection for good, and the user's pool may be small.
    let options = PgPoolOptions::new().max_connections(1);
    let pool = options.connect_with((*pool.connect_options()).clone()).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(channel).await?;
    loop {
        wake.send_modify(|times| *times += 1);
        listener.try_recv().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::SHARDS;

    #[test]
    fn there_are_as_many_shards_as_the_table_has() {
        let table = include_str!("../../migrations/postgres/0003_outbox.sql");
        assert_eq!(table.matches(&format!("% {SHARDS}")).count(), 3, "{table}");
        assert!(include_str!("mod.rs").contains(&format!("{SHARDS} shards")));
    }
}
