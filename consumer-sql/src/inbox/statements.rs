//! What the inbox asks of a database, and its statements.

use std::time::Duration;

use bytes::Bytes;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr, pool::PoolConnection};

use crate::Tables;

/// Rows deleted at once: few enough that nobody waits for it.
pub(super) const PORTION: u64 = 500;

/// What is written of a message.
#[derive(Debug, Clone)]
pub struct Record {
    pub(super) hash: u128,
    pub(super) key: Bytes,
    pub(super) fingerprint: Option<u128>,
}

/// The statements with the names of one's tables.
#[derive(Debug)]
pub struct Sql {
    pub(super) consumer: Box<str>,
    pub(super) record: SqlStr,
    pub(super) known: SqlStr,
    pub(super) sweep: SqlStr,
    /// What `ROLLBACK TO` leaves of a message in a batch.
    forget: String,
}

/// The hidden part of [`Database`](crate::Database). The futures may be dropped at any time; the connection is then given
/// to [`abandon`](Self::abandon).
#[doc(hidden)]
pub trait Statements: sqlx::Database {
    /// Whether one transaction at a time can write.
    const ONE_WRITER: bool;
    const BEGIN: &'static str;
    const RECORD: &'static str;
    const KNOWN: &'static str;
    const SWEEP: &'static str;
    /// What stands before and behind a hash in hexadecimal digits.
    const HEX: (&'static str, &'static str);

    /// Records what is not there, and says what that was.
    fn record(
        connection: &mut Self::Connection,
        sql: &Sql,
        records: &[&Record],
    ) -> impl Future<Output = Result<Vec<u128>, sqlx::Error>> + Send;

    /// The fingerprints of what is there.
    fn known(
        connection: &mut Self::Connection,
        sql: &Sql,
        hashes: &[u128],
    ) -> impl Future<Output = Result<Vec<(u128, Option<u128>)>, sqlx::Error>> + Send;

    /// Runs statements that have no parameters, in one round trip.
    fn run(
        connection: &mut Self::Connection,
        statements: SqlStr,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Commits, and never takes a rollback for that. After an error nobody knows what has happened.
    fn commit(connection: &mut Self::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Deletes a portion of what is older than the retention, and says how much that was.
    fn sweep(
        connection: &mut Self::Connection,
        sql: &Sql,
        retention: Duration,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Gives up a connection that may be in the middle of anything: what is not committed is rolled back.
    fn abandon(connection: PoolConnection<Self>);
}

impl Sql {
    pub(super) fn new<DB: Statements>(tables: &Tables, consumer: &str) -> Self {
        let named = |sql: &str| AssertSqlSafe(tables.in_sql(sql)).into_sql_str();
        let (before, _) = DB::HEX;
        Self {
            consumer: consumer.into(),
            record: named(DB::RECORD),
            known: named(DB::KNOWN),
            sweep: named(DB::SWEEP),
            forget: tables.in_sql(&format!("DELETE FROM consumer_inbox WHERE key_hash = {before}")),
        }
    }

    /// Deletes the record of a message that was in this transaction.
    pub(super) fn forget<DB: Statements>(&self, hash: u128) -> String {
        format!("{}{hash:032x}{}", self.forget, DB::HEX.1)
    }
}

/// A column of 16 bytes.
pub(super) fn number(bytes: &[u8]) -> Result<u128, sqlx::Error> {
    let bytes = bytes.try_into().map_err(|_| sqlx::Error::Protocol("a hash has not 16 bytes".to_owned()))?;
    Ok(u128::from_be_bytes(bytes))
}
