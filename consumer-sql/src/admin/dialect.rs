//! Where the two databases differ in what an operator asks of them.

use std::{future::Future, time::Duration};

use sqlx::Arguments;
use sqlx::error::BoxDynError;

pub(crate) use super::statement::{Statement, Value};
use crate::Tables;

/// What `Database` needs beyond its statements for the work.
pub trait Dialect: sqlx::Database {
    /// Whether a text holds another, by the function of this name.
    const POSITION: &'static str;
    /// The shard of a row.
    const SHARD: &'static str;
    /// Milliseconds since the epoch, as the database has them.
    const NOW: &'static str;
    /// Behind a `SELECT`: nobody else changes these rows until the end of the transaction.
    const LOCKED: &'static str;
    /// As [`LOCKED`](Self::LOCKED), without those that somebody else has.
    const LOCKED_IF_FREE: &'static str;
    /// Between two portions: whoever waits for the file looks again only so often.
    const PAUSE: Duration;

    /// A column with a point in time as milliseconds since the epoch.
    fn millis(column: &str) -> String;
    /// The parameter of this number, in milliseconds since the epoch, as a point in time.
    fn time(parameter: usize) -> String;

    /// Keeps relays from the shard until the end of the transaction.
    fn lock(
        connection: &mut Self::Connection,
        tables: &Tables,
        shard: i64,
        limit: Duration,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn fetch_rows(
        connection: &mut Self::Connection,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
    fn run_statement(
        connection: &mut Self::Connection,
        statement: Statement,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    fn int(row: &Self::Row, at: usize) -> Result<Option<i64>, sqlx::Error>;
    fn text(row: &Self::Row, at: usize) -> Result<Option<String>, sqlx::Error>;
    fn bytes(row: &Self::Row, at: usize) -> Result<Option<Vec<u8>>, sqlx::Error>;
}

/// The calls of the driver, whose types are known only here.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! calls {
    () => {
        async fn fetch_rows(
            connection: &mut Self::Connection,
            Statement { text, values }: Statement,
        ) -> Result<Vec<Self::Row>, sqlx::Error> {
            let arguments = arguments::<Self::Arguments>(values).map_err(sqlx::Error::Encode)?;
            let query = sqlx::query_with::<Self, _>(sqlx::AssertSqlSafe(text), arguments);
            query.persistent(false).fetch_all(connection).await
        }

        async fn run_statement(
            connection: &mut Self::Connection,
            Statement { text, values }: Statement,
        ) -> Result<u64, sqlx::Error> {
            let arguments = arguments::<Self::Arguments>(values).map_err(sqlx::Error::Encode)?;
            let query = sqlx::query_with::<Self, _>(sqlx::AssertSqlSafe(text), arguments);
            Ok(query.persistent(false).execute(connection).await?.rows_affected())
        }

        fn int(row: &Self::Row, at: usize) -> Result<Option<i64>, sqlx::Error> {
            sqlx::Row::try_get(row, at)
        }

        fn text(row: &Self::Row, at: usize) -> Result<Option<String>, sqlx::Error> {
            sqlx::Row::try_get(row, at)
        }

        fn bytes(row: &Self::Row, at: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
            sqlx::Row::try_get(row, at)
        }
    };
}

#[cfg(feature = "postgres")]
impl Dialect for sqlx::Postgres {
    const POSITION: &'static str = "strpos";
    const SHARD: &'static str = "CAST(shard AS bigint)";
    const NOW: &'static str = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)";
    const LOCKED: &'static str = " FOR UPDATE";
    const LOCKED_IF_FREE: &'static str = " FOR UPDATE SKIP LOCKED";
    const PAUSE: Duration = Duration::ZERO;

    fn millis(column: &str) -> String {
        format!("CAST(floor(extract(epoch FROM {column}) * 1000) AS bigint)")
    }

    fn time(parameter: usize) -> String {
        format!("to_timestamp(${parameter}::bigint / 1000.0)")
    }

    async fn lock(
        connection: &mut Self::Connection,
        tables: &Tables,
        shard: i64,
        limit: Duration,
    ) -> Result<(), sqlx::Error> {
        let limit = limit.as_millis().clamp(1, i32::MAX as u128);
        let limit = Statement::new(format!("SET LOCAL lock_timeout = {limit}"));
        Self::run_statement(connection, limit).await?;
        let lock = format!("SELECT pg_advisory_xact_lock{}", crate::relay::postgres::LOCK);
        let mut lock = Statement::new(tables.in_sql(&lock));
        lock.values.push(Value::Int(shard));
        Self::run_statement(connection, lock).await.map(drop)
    }

    calls!();
}

#[cfg(feature = "sqlite")]
impl Dialect for sqlx::Sqlite {
    const POSITION: &'static str = "instr";
    const SHARD: &'static str = "0";
    const NOW: &'static str = crate::relay::sqlite::NOW;
    const LOCKED: &'static str = "";
    const LOCKED_IF_FREE: &'static str = "";
    const PAUSE: Duration = Duration::from_millis(5);

    fn millis(column: &str) -> String {
        column.to_owned()
    }

    fn time(parameter: usize) -> String {
        format!("${parameter}")
    }

    /// The transaction itself keeps everybody out, and the relay marks rows in one statement.
    async fn lock(_: &mut Self::Connection, _: &Tables, _: i64, _: Duration) -> Result<(), sqlx::Error> {
        Ok(())
    }

    calls!();
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn arguments<A>(values: Vec<Value>) -> Result<A, BoxDynError>
where
    A: Arguments,
    for<'a> i64: sqlx::Encode<'a, A::Database> + sqlx::Type<A::Database>,
    for<'a> String: sqlx::Encode<'a, A::Database> + sqlx::Type<A::Database>,
    for<'a> Vec<u8>: sqlx::Encode<'a, A::Database> + sqlx::Type<A::Database>,
{
    let mut arguments = A::default();
    for value in values {
        match value {
            Value::Int(value) => arguments.add(value)?,
            Value::Text(value) => arguments.add(value)?,
            Value::Bytes(value) => arguments.add(value)?,
        }
    }
    Ok(arguments)
}
