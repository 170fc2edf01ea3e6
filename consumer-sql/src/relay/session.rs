//! What a relay asks of a database.

use std::{future::Future, time::Duration};

use sqlx::Pool;

use crate::{Database, Tables, outbox::row::Row};

/// One connection of a relay, with the shards that it owns: they are free again when it is gone.
pub trait Session: Send + Sized + 'static {
    /// The database.
    type Database: Database<Session = Self>;

    /// Sessions that can work side by side in one relay.
    const MOST: usize;

    /// Connects as the pool does.
    fn open(
        pool: &Pool<Self::Database>,
        tables: &Tables,
    ) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;

    /// Tries what it will do later, and changes nothing.
    fn check(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Becomes the owner of a shard in which something waits, from `first` on; none where there is nothing, or others own it.
    fn own(&mut self, first: u16) -> impl Future<Output = Result<Option<u16>, sqlx::Error>> + Send;

    /// The first rows of a shard that may be published, in the order of their ids. Rows behind one of their key that has
    /// failed are marked as held instead. Nothing at all is `None`.
    fn take(
        &mut self,
        shard: u16,
        limit: Limit,
    ) -> impl Future<Output = Result<Option<Vec<Row>>, sqlx::Error>> + Send;

    /// Writes what became of rows of a shard that this session owns.
    fn settle(
        &mut self,
        settled: &Settled,
        keep: bool,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Frees a portion of what is held behind rows that are published now; tells how many that were.
    fn release(&mut self, settled: &Settled) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Gives a shard up.
    fn disown(&mut self, shard: u16) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Lets a portion of the rows whose wait is over be taken again; tells how many.
    fn retry_due(&mut self) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Deletes a portion of what was published longer ago than this; tells how many.
    fn forget(&mut self, after: Duration) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// What waits.
    fn lag(&mut self) -> impl Future<Output = Result<Lag, sqlx::Error>> + Send;

    /// Whether something waits that a relay will publish without anybody's help.
    fn has_work(&mut self) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
}

/// How much is taken at once.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    pub(crate) rows: u32,
    /// Of payloads; one row is taken however large it is.
    pub(crate) bytes: u64,
}

/// What became of the rows of a batch. Those that are not named are as they were.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub(crate) published: Vec<i64>,
    /// Destination and key of those published that had been set aside before: what is held behind them is free.
    pub(crate) released: Vec<(String, Vec<u8>)>,
    pub(crate) failed: Vec<Failed>,
}

/// A row that is set aside: refused, or its broker is away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) id: i64,
    /// Refused ones, this one included if it is one.
    pub(crate) attempts: u32,
    pub(crate) is_refused: bool,
    pub(crate) error: String,
    /// Until it is tried again; none is for good.
    pub(crate) wait: Option<Duration>,
}

/// What an outbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// Rows that will be published without anybody's help: those that wait, and those that are tried again later.
    pub waiting: u64,
    /// How long the oldest of them has been there.
    pub oldest: Duration,
    /// Rows held behind another one of their key that has failed.
    pub held: u64,
    /// Rows that are not tried any more.
    pub quarantined: u64,
}

impl Settled {
    pub(crate) fn is_empty(&self) -> bool {
        self.published.is_empty() && self.failed.is_empty()
    }
}

/// Need the rights that a relay needs, and change nothing.
pub(super) const CHECKS: [&str; 3] = [
    "SELECT 1 FROM consumer_outbox WHERE 1 = 0",
    "UPDATE consumer_outbox SET state = state WHERE 1 = 0",
    "DELETE FROM consumer_outbox WHERE 1 = 0",
];
