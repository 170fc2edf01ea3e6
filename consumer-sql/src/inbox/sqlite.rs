//! The inbox's statements on SQLite.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection, Row, SqlSafeStr, SqlStr, Sqlite, SqliteConnection, pool::PoolConnection,
    query, raw_sql,
};
use sqlx_core::transaction::TransactionManager;

use super::statements::{PORTION, Record, Sql, Statements, number};

/// There are no arrays: the lists are made for their number of values.
const LIST: &str = "/*list*/";

type Manager = <Sqlite as sqlx::Database>::TransactionManager;

impl Statements for Sqlite {
    const ONE_WRITER: bool = true;
    /// With the lock from the start: a transaction that began as a reader may find that it cannot write.
    const RECORD: &'static str = "INSERT INTO consumer_inbox (key_hash, consumer, idempotency_key, fingerprint) \
        VALUES /*list*/ ON CONFLICT DO NOTHING RETURNING key_hash";
    const RECORD_ONE: &'static str = "INSERT INTO consumer_inbox (key_hash, consumer, idempotency_key, fingerprint) \
        VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
    const KNOWN: &'static str =
        "SELECT key_hash, fingerprint FROM consumer_inbox WHERE key_hash IN (/*list*/)";
    const SWEEP: &'static str = "DELETE FROM consumer_inbox WHERE key_hash IN (\
        SELECT key_hash FROM consumer_inbox \
        WHERE consumer = ? AND recorded_at < CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - ? \
        ORDER BY recorded_at LIMIT ?)";
    const HEX: (&'static str, &'static str) = ("x'", "'");

    async fn record(
        connection: &mut SqliteConnection,
        sql: &Sql,
        records: &[&Record],
    ) -> Result<Vec<u128>, sqlx::Error> {
        if let [record] = records {
            let insert = query(sql.record_one.clone())
                .bind(record.hash.to_be_bytes().to_vec())
                .bind(&*sql.consumer)
                .bind(&record.key[..])
                .bind(record.fingerprint.map(|print| print.to_be_bytes().to_vec()));
            let done = insert.execute(connection).await?;
            return Ok(if done.rows_affected() > 0 { vec![record.hash] } else { Vec::new() });
        }
        let mut insert = query(listed(&sql.record, "(?, ?, ?, ?)", records.len()));
        for record in records {
            insert = insert
                .bind(record.hash.to_be_bytes().to_vec())
                .bind(&*sql.consumer)
                .bind(&record.key[..])
                .bind(record.fingerprint.map(|print| print.to_be_bytes().to_vec()));
        }
        let rows = insert.fetch_all(connection).await?;
        rows.iter().map(|row| number(row.try_get(0)?)).collect()
    }

    async fn known(
        connection: &mut SqliteConnection,
        sql: &Sql,
        hashes: &[u128],
    ) -> Result<Vec<(u128, Option<u128>)>, sqlx::Error> {
        let mut select = query(listed(&sql.known, "?", hashes.len()));
        for hash in hashes {
            select = select.bind(hash.to_be_bytes().to_vec());
        }
        let rows = select.fetch_all(connection).await?;
        let known = rows.iter().map(|row| {
            let print: Option<&[u8]> = row.try_get(1)?;
            Ok((number(row.try_get(0)?)?, print.map(number).transpose()?))
        });
        known.collect()
    }

    async fn run(connection: &mut SqliteConnection, statements: SqlStr) -> Result<(), sqlx::Error> {
        raw_sql(statements).execute(connection).await.map(drop)
    }

    /// A savepoint of the handler that has been forgotten is released before.
    async fn commit(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if !connection.is_in_transaction() {
            return Err(sqlx::Error::Protocol("the handler has ended the transaction".to_owned()));
        }
        while connection.is_in_transaction() {
            Manager::commit(connection).await?;
        }
        Ok(())
    }

    async fn sweep(
        connection: &mut SqliteConnection,
        sql: &Sql,
        retention: Duration,
    ) -> Result<u64, sqlx::Error> {
        let millis = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let sweep = query(sql.sweep.clone()).bind(&*sql.consumer).bind(millis);
        let done = sweep.bind(i64::try_from(PORTION).unwrap_or(i64::MAX)).execute(connection).await?;
        Ok(done.rows_affected())
    }

    /// The thread of the connection knows what of BEGIN and COMMIT was done and not heard of, and needs to be told in any
    /// case. Closing it would lose a database in memory.
    fn abandon(mut connection: PoolConnection<Self>) {
        // Savepoints that a handler has forgotten are rolled back before. One more, since the thread leaves one out if a
        // rollback was done and not heard of; without a transaction it is none.
        for _ in 0..=Manager::get_transaction_depth(&connection).max(1) {
            Manager::start_rollback(&mut connection);
        }
    }
}

fn listed(sql: &SqlStr, value: &str, count: usize) -> SqlStr {
    let list = vec![value; count].join(", ");
    AssertSqlSafe(sql.as_str().replace(LIST, &list)).into_sql_str()
}
