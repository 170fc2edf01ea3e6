//! From the outbox to the broker.
//!
//! ```text
//! own a shard → take its first rows → publish → delete what is confirmed → … → give the shard up
//! ```
//!
//! # What it guarantees
//! - **Every committed row is published**, at least once and with the message id it was written with. Only what the broker has
//!   confirmed is deleted. A relay that dies, or loses its database, between the confirm and the deletion publishes those rows
//!   again: consumers deduplicate by the id.
//! - **No row is skipped**, however late its transaction commits: there is no cursor, what is in the table is published.
//! - **Per key in order**: rows of one destination and message key are published in the order of their ids, and one has to be
//!   confirmed before the next is sent. One relay at a time has the shard of a key, however many there are.
//! - **A row that the broker refuses** is tried again after a wait, and after [`max_attempts`](Relay::max_attempts) it is
//!   *quarantined* with its error: it stays in the table, later rows of its key are held, everything else goes on.
//!   `consumer-admin outbox` shows, requeues and purges such rows. A row that cannot be read is quarantined at once.
//! - **A broker that is away**, or one of its queues that takes nothing, costs no attempt: a row is set aside for 5 s, then for
//!   60 s, and those of other destinations come to their turn.
//!
//! # What it costs
//! One message of a key is on its way at a time: a single key moves at the pace of the broker's confirms, many keys at that of
//! the broker. A relay holds one connection for each worker, one for looking after the table, and on PostgreSQL one for
//! `LISTEN`. Those need sessions of their own: behind a pooler that shares sessions between transactions (PgBouncer's
//! transaction mode) neither locks nor `LISTEN` work; connect the relay past it.

mod keeper;
mod meter;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
mod publish;
mod rows;
mod session;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
mod worker;

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consumer_core::Publisher;
use sqlx::Pool;
use tokio::{sync::watch, task::JoinSet};

use crate::{Database, SqlError, Tables};
pub use meter::names;
use publish::Policy;
pub use session::{Lag, Limit, Session};
use worker::{Counts, Shared, Worker, within};

/// Publishes what is in an outbox. See the [module](self) for what it guarantees.
///
/// # Defaults
/// | option | default |
/// |---|---|
/// | [`workers`](Self::workers) | 4 (SQLite: 1) |
/// | [`batch`](Self::batch) | 500 rows, and 16 MiB of payloads |
/// | [`poll`](Self::poll) | 500 ms (SQLite: 100 ms) |
/// | [`max_attempts`](Self::max_attempts) | 10, after 1 s, 2 s, 4 s … up to 5 min: 8 min 31 s in all |
/// | [`history`](Self::history) | none: published rows are deleted |
/// | [`drain_timeout`](Self::drain_timeout) | 10 s |
#[must_use = "a relay does nothing until it is run"]
pub struct Relay<DB: Database, P> {
    pool: Pool<DB>,
    publisher: P,
    config: Config,
}

#[derive(Debug, Clone)]
struct Config {
    tables: Tables,
    workers: u16,
    limit: Limit,
    poll: Duration,
    policy: Policy,
    history: Option<Duration>,
    drain: Duration,
    until_empty: bool,
}

/// What a relay has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayReport {
    /// Rows that the broker has confirmed.
    pub published: u64,
    /// Attempts that it has refused.
    pub failed: u64,
    /// Rows that are not tried any more.
    pub quarantined: u64,
}

impl<DB: Database, P: Publisher> Relay<DB, P> {
    /// From the outbox in the database of `pool`, as whose user connections of its own are opened, to the broker of
    /// `publisher`.
    pub fn new(pool: Pool<DB>, publisher: P) -> Self {
        let is_shared = DB::Session::MOST > 1;
        let config = Config {
            tables: Tables::new(),
            workers: 4,
            limit: Limit { rows: 500, bytes: 16 << 20 },
            poll: Duration::from_millis(if is_shared { 500 } else { 100 }),
            policy: Policy::default(),
            history: None,
            drain: Duration::from_secs(10),
            until_empty: false,
        };
        Self { pool, publisher, config }
    }

    /// Sets where the tables are.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.config.tables = tables;
        self
    }

    /// Sets how many shards are worked on at the same time; at least 1. All relays of an outbox together have no more than
    /// 32 shards to share, those on SQLite one.
    pub fn workers(mut self, workers: u16) -> Self {
        self.config.workers = workers.max(1);
        self
    }

    /// Sets how many rows are taken at once; at least 1. Payloads of more than 16 MiB together are never taken at once, unless
    /// one alone is larger.
    pub fn batch(mut self, rows: u32) -> Self {
        self.config.limit.rows = rows.max(1);
        self
    }

    /// Sets how often the table is looked at without having been woken.
    pub fn poll(mut self, interval: Duration) -> Self {
        self.config.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets how often a row is tried that the broker refuses; at least 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.config.policy.attempts = attempts.max(1);
        self
    }

    /// Sets the waits before a refused row is tried again: doubled from `first` up to `longest`. A row whose broker is away waits
    /// no longer than `longest` either.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.config.policy.first_wait = first;
        self.config.policy.longest_wait = longest;
        self
    }

    /// Keeps published rows for so long, marked as such.
    pub fn history(mut self, keep: Duration) -> Self {
        self.config.history = Some(keep);
        self
    }

    /// Sets how long messages on their way are waited for after the stop was asked for. What is not confirmed by then is
    /// published again by the next relay.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.config.drain = limit;
        self
    }

    /// Stops when nothing is left that would be published without anybody's help.
    pub fn until_empty(mut self) -> Self {
        self.config.until_empty = true;
        self
    }

    /// Runs until `shutdown` resolves: then nothing is taken any more, and what is on its way has the drain timeout.
    ///
    /// The database is looked at first. Later it may go away and come back.
    ///
    /// # Errors
    /// When the database cannot be reached at the start, the tables are missing, or the user may not read, update and delete
    /// there; and when the publisher panics.
    ///
    /// # Cancel safety
    /// Dropping the future is a crash: what was on its way is published again. The publisher may still be at it, so the second
    /// copy of a message may come behind later ones of its key.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<RelayReport, SqlError> {
        let Self { pool, publisher, config } = self;
        tokio::pin!(shutdown);
        let begin = async {
            let mut session = within(DB::Session::open(&pool, &config.tables)).await?;
            within(session.check()).await?;
            Ok(session)
        };
        let begun = tokio::select! {
            begun = begin => begun,
            () = &mut shutdown => return Ok(RelayReport::default()),
        };
        let refused =
            |error| SqlError::driver(format_args!("the outbox {} cannot be worked on", config.tables), error);
        let session = begun.map_err(refused)?;
        let workers = config.workers.min(u16::try_from(DB::Session::MOST).unwrap_or(u16::MAX));
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            pool,
            publisher,
            config,
            counts: Counts::default(),
            meter: meter::Meter,
            stop: stopped,
            wake: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        for number in 0..workers {
            tasks.spawn(Worker::new(shared.clone(), number).run());
        }
        tasks.spawn(DB::listen(
            shared.pool.clone(),
            shared.config.tables.clone(),
            shared.wake.clone(),
            shared.stop.clone(),
        ));
        let keeper = keeper::run(&shared, session);
        let mut died = None;
        tokio::select! {
            () = shutdown => {}
            () = keeper => {}
            // They end by the stop, or by a panic of the publisher.
            ended = tasks.join_next() => died = ended.and_then(Result::err),
        }
        tracing::info!("the relay is stopping");
        stop.send_replace(true);
        while let Some(ended) = tasks.join_next().await {
            died = died.or(ended.err());
        }
        if let Some(died) = died {
            return Err(SqlError::other(
                "a worker of the relay has panicked: what it had taken is published again",
                died,
            ));
        }
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let Counts { published, failed, quarantined } = &shared.counts;
        Ok(RelayReport {
            published: count(published),
            failed: count(failed),
            quarantined: count(quarantined),
        })
    }
}

impl<DB: Database, P> fmt::Debug for Relay<DB, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Display for RelayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { published, failed, quarantined } = self;
        write!(f, "{published} published, {failed} attempts refused, {quarantined} quarantined")
    }
}
