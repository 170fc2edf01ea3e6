//! Configuration of the inbox.

use std::{
    fmt,
    sync::{Arc, Once},
    time::Duration,
};

use consumer_core::{
    IdempotencyKey, Message,
    dedup::{Fingerprint, MissingKey},
    pipeline::{Explain, Facts, InboxFacts},
};
use sqlx::Pool;
use tokio::sync::Semaphore;
use tower::Layer;

use super::{
    batch::Batches,
    meter::Meter,
    retention::Sweeper,
    service::{Inbox, Shared, probe_record},
    statements::Sql,
    transaction::Open,
};
use crate::{Database, SqlError, Tables, availability::Availability};

const DAY: Duration = Duration::from_secs(86_400);
/// Within what every clock and interval can hold.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Lets the effect of each message happen once, in one transaction with its record. See the [module](super) for what it
/// guarantees.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`key`](Self::key) | the message id | what publishers stamp |
/// | [`retention`](Self::retention) | 7 days | longer than the usual way back; check yours |
/// | [`missing_key`](Self::missing_key) | reject | no effect without protection |
/// | [`fingerprint`](Self::fingerprint) | the payload | another payload under a known id is an error, not a duplicate |
#[must_use]
pub struct InboxLayer<DB: Database> {
    pool: Pool<DB>,
    config: Config,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) consumer: Arc<str>,
    pub(super) key: IdempotencyKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) missing_key: MissingKey,
    pub(super) retention: Duration,
    pub(super) must_be_used: bool,
    /// How many messages share a transaction, where they do, and how many such transactions there are at once.
    batch: Option<usize>,
    batches_at_once: usize,
    tables: Tables,
}

impl<DB: Database> InboxLayer<DB> {
    /// Records in a database for the logical consumer `consumer`: consumers with other names are independent of it.
    ///
    /// A message holds a connection of the pool while its handler runs, so the pool needs as many as there are handlers at
    /// once, and more for those that take one for themselves besides.
    pub fn new(pool: Pool<DB>, consumer: impl Into<Arc<str>>) -> Self {
        let config = Config {
            consumer: consumer.into(),
            key: IdempotencyKey::default(),
            fingerprint: Fingerprint::payload(),
            missing_key: MissingKey::default(),
            retention: 7 * DAY,
            must_be_used: true,
            batch: None,
            batches_at_once: 2,
            tables: Tables::new(),
        };
        Self { pool, config }
    }

    /// Sets where the idempotency key comes from.
    pub fn key(mut self, key: IdempotencyKey) -> Self {
        self.config.key = key;
        self
    }

    /// Takes the fingerprint from a closure, for payloads that differ in what does not matter. Where it panics the
    /// message fails for good.
    pub fn fingerprint(mut self, f: impl Fn(&Message) -> Option<u128> + Send + Sync + 'static) -> Self {
        self.config.fingerprint = Fingerprint::from_fn(f);
        self
    }

    /// Takes no fingerprint: another payload under a known id passes for a duplicate.
    pub fn no_fingerprint(mut self) -> Self {
        self.config.fingerprint = Fingerprint::none();
        self
    }

    /// Sets what becomes of a message without a key. Processed, it has a transaction and leaves no record.
    pub fn missing_key(mut self, policy: MissingKey) -> Self {
        self.config.missing_key = policy;
        self
    }

    /// Sets how long records are kept. It has to exceed the longest way back of a message: retries, redrives, what the
    /// broker keeps. Older ones are deleted in small portions, in the background, while the layer is in use.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.config.retention = retention.min(LONGEST);
        self
    }

    /// Sets where the tables are.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.config.tables = tables;
        self
    }

    /// Lets up to `max` messages share a transaction: what has come while the one before was at work goes into the next.
    /// A commit is what a transaction costs most, and it is then paid once.
    ///
    /// Each message has its own outcome: one that fails is undone by a savepoint and takes none of the others along, unless
    /// the transaction itself is lost: then those before it fail transiently, and it is alone next time. Their
    /// handlers run one after another, so one that hangs holds up the batch: bound it by a timeout layer inside. If the
    /// commit fails, all of them fail transiently. A concurrency limit outside must let in as many messages as a batch is to
    /// have. On PostgreSQL more than 64 savepoints with writes in a transaction slow other readers down.
    ///
    /// 1 and 0 are a transaction for each message, the default.
    pub fn batch(mut self, max: usize) -> Self {
        self.config.batch = (max > 1).then_some(max);
        self
    }

    /// Sets how many batches are at work at once, with a connection each; at least 1. Default: 2, so that one works while
    /// the other is committed, and 1 on SQLite. Two that write the same rows wait for each other, perhaps in a circle:
    /// PostgreSQL then ends a statement of one by an error, and its message is tried again. With 1 that happens between
    /// processes only.
    pub fn batches_at_once(mut self, batches: usize) -> Self {
        self.config.batches_at_once = batches.max(1);
        self
    }

    /// Does not warn of a handler that succeeds without its transaction: for handlers that have nothing to write for
    /// some messages.
    pub fn without_transaction_is_fine(mut self) -> Self {
        self.config.must_be_used = false;
        self
    }

    /// Tries whether records can be written, and leaves nothing behind. For the start of a service: later, what is
    /// missing is a transient failure of every message.
    ///
    /// # Errors
    /// As the database says: with `is_schema()` when the table is missing, `is_denied()` when the user may not write it,
    /// `is_unavailable()` when there is no connection to be had. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, it leaves nothing behind either.
    pub async fn check(&self) -> Result<(), SqlError> {
        let failed = |error| SqlError::driver("the inbox cannot be used", error);
        let sql = Sql::new::<DB>(&self.config.tables, &self.config.consumer);
        let mut open = Open::begin(&self.pool, None).await.map_err(failed)?;
        let hash = probe_record::<DB>(&mut open, &sql).await?;
        DB::known(open.connection(), &sql, &[hash]).await.map_err(failed)?;
        DB::sweep(open.connection(), &sql, LONGEST).await.map_err(failed)?;
        open.rollback().await;
        Ok(())
    }
}

impl<DB: Database, S> Layer<S> for InboxLayer<DB> {
    type Service = Inbox<S, DB>;

    fn layer(&self, inner: S) -> Inbox<S, DB> {
        let config = self.config.clone();
        let shared = Shared {
            pool: self.pool.clone(),
            sql: Sql::new::<DB>(&config.tables, &config.consumer),
            batches: config
                .batch
                .map(|max| Batches::new(max, if DB::ONE_WRITER { 1 } else { config.batches_at_once })),
            writer: DB::ONE_WRITER.then(|| Arc::new(Semaphore::new(1))),
            availability: Availability::default(),
            sweeper: Sweeper::new(),
            meter: Meter::new(&config.consumer),
            unused: Once::new(),
            config,
        };
        Inbox::new(inner, Arc::new(shared))
    }
}

impl<DB: Database> Explain for InboxLayer<DB> {
    fn explain(&self, facts: &mut Facts) {
        let config = &self.config;
        facts.inbox = Some(InboxFacts {
            consumer: config.consumer.to_string(),
            key: config.key.to_string(),
            retention: config.retention,
            process_without_key: config.missing_key == MissingKey::Process,
            fingerprint: !config.fingerprint.is_none(),
            batch: config.batch,
        });
    }
}

impl<DB: Database> Clone for InboxLayer<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), config: self.config.clone() }
    }
}

impl<DB: Database> fmt::Debug for InboxLayer<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxLayer")
            .field("database", &DB::NAME)
            .field("consumer", &self.config.consumer)
            .field("key", &self.config.key)
            .field("retention", &self.config.retention)
            .field("missing_key", &self.config.missing_key)
            .field("batch", &self.config.batch)
            .field("tables", &self.config.tables)
            .finish_non_exhaustive()
    }
}
