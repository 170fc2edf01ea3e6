//! The inbox's statements on PostgreSQL.

use std::time::Duration;

use sqlx::{PgConnection, Postgres, Row, SqlStr, pool::PoolConnection, query, raw_sql};
use sqlx_core::transaction::TransactionManager;

use super::statements::{PORTION, Record, Sql, Statements, number};

impl Statements for Postgres {
    const ONE_WRITER: bool = false;
    const BEGIN: &'static str = "BEGIN";
    const RECORD: &'static str = "INSERT INTO consumer_inbox (key_hash, consumer, idempotency_key, fingerprint) \
        SELECT hash, $1, key, print FROM unnest($2::bytea[], $3::bytea[], $4::bytea[]) AS new (hash, key, print) \
        ON CONFLICT DO NOTHING RETURNING key_hash";
    const KNOWN: &'static str = "SELECT key_hash, fingerprint FROM consumer_inbox WHERE key_hash = ANY($1)";
    const SWEEP: &'static str = "DELETE FROM consumer_inbox WHERE key_hash = ANY(ARRAY(\
        SELECT key_hash FROM consumer_inbox \
        WHERE consumer = $1 AND recorded_at < now() - make_interval(secs => $2) \
        ORDER BY recorded_at LIMIT $3 FOR UPDATE SKIP LOCKED))";
    const HEX: (&'static str, &'static str) = (r"'\x", "'");

    async fn record(
        connection: &mut PgConnection,
        sql: &Sql,
        records: &[&Record],
    ) -> Result<Vec<u128>, sqlx::Error> {
        let hashes: Vec<[u8; 16]> = records.iter().map(|record| record.hash.to_be_bytes()).collect();
        let keys: Vec<&[u8]> = records.iter().map(|record| &record.key[..]).collect();
        let prints: Vec<Option<[u8; 16]>> =
            records.iter().map(|record| record.fingerprint.map(u128::to_be_bytes)).collect();
        let rows = query(sql.record.clone()).bind(&*sql.consumer).bind(hashes).bind(keys).bind(prints);
        let rows = rows.fetch_all(connection).await?;
        rows.iter().map(|row| number(row.try_get(0)?)).collect()
    }

    async fn known(
        connection: &mut PgConnection,
        sql: &Sql,
        hashes: &[u128],
    ) -> Result<Vec<(u128, Option<u128>)>, sqlx::Error> {
        let hashes: Vec<[u8; 16]> = hashes.iter().map(|hash| hash.to_be_bytes()).collect();
        let rows = query(sql.known.clone()).bind(hashes).fetch_all(connection).await?;
        let known = rows.iter().map(|row| {
            let print: Option<&[u8]> = row.try_get(1)?;
            Ok((number(row.try_get(0)?)?, print.map(number).transpose()?))
        });
        known.collect()
    }

    async fn run(connection: &mut PgConnection, statements: SqlStr) -> Result<(), sqlx::Error> {
        raw_sql(statements).execute(connection).await.map(drop)
    }

    /// COMMIT of a transaction in which a statement has failed rolls it back and reports no error: the SELECT before it
    /// does. With the transaction that follows on its heels sqlx's own count of them stays right; its rollback goes out
    /// with whatever is sent next.
    async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        raw_sql("SELECT 1; COMMIT AND CHAIN").execute(&mut *connection).await?;
        <Self as sqlx::Database>::TransactionManager::start_rollback(connection);
        Ok(())
    }

    async fn sweep(
        connection: &mut PgConnection,
        sql: &Sql,
        retention: Duration,
    ) -> Result<u64, sqlx::Error> {
        let sweep = query(sql.sweep.clone()).bind(&*sql.consumer).bind(retention.as_secs_f64());
        let done = sweep.bind(i64::try_from(PORTION).unwrap_or(i64::MAX)).execute(connection).await?;
        Ok(done.rows_affected())
    }

    /// sqlx does not know of a BEGIN that was sent and not answered, and would hand the connection on with it.
    fn abandon(mut connection: PoolConnection<Self>) {
        connection.close_on_drop();
    }
}
