//! The inbox at work on one message.

use std::{
    collections::HashSet,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Once, Weak},
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{
    BoxError, Failure, Message, Outcome,
    dedup::{MissingKey, StoreKey, fingerprint},
};
use sqlx::Pool;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::Service;

use super::{
    batch::{self, Batches},
    failures::{handed_back, kept, within_itself},
    layer::Config,
    meter::Meter,
    retention::Sweeper,
    statements::{Record, Sql},
    transaction::{Lent, Open, Slot, not_committed},
};
use crate::{Database, SqlError, availability::Availability};

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Whoever waits for a commit's fate waits no longer than this.
const LOOK: Duration = Duration::from_secs(30);
/// A record that is neither written nor found was deleted in between.
const RECORD_TRIES: u32 = 3;

/// The service that [`InboxLayer`](super::InboxLayer) makes.
///
/// It is not ready while the database is known to be away, and never polls its inner service for readiness: that is done
/// within the call.
pub struct Inbox<S, DB: Database> {
    inner: S,
    shared: Arc<Shared<DB>>,
}

pub(super) struct Shared<DB: Database> {
    pub(super) pool: Pool<DB>,
    pub(super) sql: Sql,
    /// Where only one may write: waiting here is fair, and costs no time-out.
    pub(super) writer: Option<Arc<Semaphore>>,
    /// In batch mode.
    pub(super) batches: Option<Batches<DB>>,
    pub(super) availability: Availability,
    pub(super) sweeper: Sweeper,
    pub(super) meter: Meter,
    pub(super) unused: Once,
    pub(super) config: Config,
}

/// A transaction with the records that were not there, and the fingerprints of those that were.
pub(super) type Begun<DB> = (Open<DB>, Vec<(u128, Option<u128>)>);

impl<S, DB: Database> Inbox<S, DB> {
    pub(super) fn new(inner: S, shared: Arc<Shared<DB>>) -> Self {
        Self { inner, shared }
    }

    /// In batch mode, how many messages wait for their turn now.
    pub fn waiting(&self) -> usize {
        self.shared.batches.as_ref().map_or(0, Batches::waiting)
    }
}

impl<S, DB> Service<Message> for Inbox<S, DB>
where
    S: Service<Message> + Clone + Send + 'static,
    S::Response: Into<Outcome> + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    DB: Database,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.shared.availability.poll_up(cx).map(Ok)
    }

    /// # Cancel safety
    /// Dropped, the future leaves record and effect both or none. While it waits for a commit they may be committed all the
    /// same: a batch commits what has succeeded in it.
    fn call(&mut self, message: Message) -> Self::Future {
        let (shared, inner) = (self.shared.clone(), self.inner.clone());
        Box::pin(async move {
            let answer = handle(&shared, inner, message).await;
            answer.map_err(|failure| failure.with_consumer(shared.config.consumer.clone()))
        })
    }
}

async fn handle<S, DB>(shared: &Arc<Shared<DB>>, mut inner: S, message: Message) -> Result<Outcome, Failure>
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send> + Send,
    DB: Database,
{
    let record = shared.record_of(&message)?;
    let outer = message.extension::<Arc<Slot<DB>>>();
    if outer.is_some_and(|slot| record.as_ref().is_some_and(|record| slot.is_open_for(record.hash))) {
        return Err(within_itself());
    }
    // Before there is a connection to hold.
    let ready = message.answered_or_cancelled(poll_fn(|cx| inner.poll_ready(cx))).await;
    ready.ok_or_else(handed_back)?.map_err(Failure::from_error)?;
    shared.sweep_if_due();
    if let Some(batches) = &shared.batches {
        return batch::handle(shared, batches, record, inner, message).await;
    }
    let (open, found) = shared.enter(record.as_ref(), &message).await?;
    if let Some((_, recorded)) = found.first() {
        open.discard();
        return known(record.as_ref().and_then(|record| record.fingerprint), *recorded);
    }
    if message.cancellation().is_cancelled() {
        open.discard();
        return Err(handed_back());
    }
    // Before the call, so that it is dropped after it: then the transaction is back.
    let lent = Lent::new(open, record.as_ref().map(|record| record.hash));
    let answer = inner.call(message.clone().with_extension(lent.slot())).await;
    let answer = answer.map(Into::into).map_err(Failure::from_error);
    match (answer, lent.end()) {
        (Ok(Outcome::Processed), Some(open)) => {
            if !lent.was_taken() {
                shared.unused();
            }
            if let Err(error) = open.commit().await.map_err(not_committed) {
                let hash = record.as_ref().map(|record| record.hash);
                let look = shared.found_after(&error, hash.as_slice());
                if message.answered_or_cancelled(look).await.is_none_or(|found| found.is_empty()) {
                    return Err(Failure::transient(error));
                }
            }
            Ok(Outcome::Processed)
        }
        (Ok(Outcome::Processed), None) => Err(kept()),
        // With any other outcome a layer inside has settled what its handler did not do.
        (answer, open) => {
            if let Some(open) = open {
                open.rollback().await;
            }
            answer
        }
    }
}

impl<DB: Database> Shared<DB> {
    /// What is to be recorded; nothing where there is no key and the policy says to go on without.
    fn record_of(&self, message: &Message) -> Result<Option<Record>, Failure> {
        if let Some(defect) = message.defect() {
            return Err(Failure::undecodable(defect.reason().to_owned()));
        }
        let config = &self.config;
        let Some(key) = config.key.of(message)? else {
            return match config.missing_key {
                MissingKey::Process => {
                    self.meter.keyless();
                    Ok(None)
                }
                MissingKey::Reject => {
                    let why = format!("no idempotency key: {} is missing or empty", config.key);
                    Err(Failure::no_key(why))
                }
            };
        };
        let hash = StoreKey::new(config.consumer.clone(), key.clone()).hash();
        Ok(Some(Record { hash, key, fingerprint: config.fingerprint.of(message)? }))
    }

    /// Begins the transaction, however long the database is away.
    async fn enter(
        self: &Arc<Self>,
        record: Option<&Record>,
        message: &Message,
    ) -> Result<Begun<DB>, Failure> {
        let records: Vec<&Record> = record.into_iter().collect();
        let mut pause = Duration::ZERO;
        loop {
            let begun = async {
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                poll_fn(|cx| self.availability.poll_up(cx)).await;
                self.begin(&records).await
            };
            match message.answered_or_cancelled(begun).await {
                None => return Err(handed_back()),
                Some(Ok(begun)) => return Ok(begun),
                Some(Err(error)) => pause = self.pause_after(error, pause).map_err(Failure::transient)?,
            }
        }
    }

    /// How long to wait before trying again after an error before any handler has run, which is no attempt.
    ///
    /// # Errors
    /// The error, where trying again is for others to decide.
    pub(super) fn pause_after(
        self: &Arc<Self>,
        error: SqlError,
        last: Duration,
    ) -> Result<Duration, SqlError> {
        // First, for a lock that was waited for too long counts as unavailable as well.
        if error.is_contended() {
            tracing::warn!(%error, source = std::error::Error::source(&error), consumer = %self.config.consumer, "a message waits for others in the database");
            return Ok((last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE));
        }
        if is_outage(&error) {
            self.is_away(error);
            return Ok(Duration::ZERO);
        }
        Err(error)
    }

    /// Writes a record that no other process waits for, and takes it back.
    pub(super) async fn try_record(&self) -> Result<(), SqlError> {
        let mut open = self.open().await?;
        probe_record::<DB>(&mut open, &self.sql).await?;
        open.rollback().await;
        Ok(())
    }

    /// Records that another transaction has written and not committed are waited for.
    pub(super) async fn begin(&self, records: &[&Record]) -> Result<Begun<DB>, SqlError> {
        let mut open = self.open().await?;
        let failed = |error| SqlError::driver("the inbox cannot record the message", error);
        let (mut left, mut found) = (records.to_vec(), Vec::new());
        for _ in 0..RECORD_TRIES {
            if !left.is_empty() {
                let written = DB::record(open.connection(), &self.sql, &left).await.map_err(failed)?;
                left.retain(|record| !written.contains(&record.hash));
            }
            if !left.is_empty() {
                let hashes: Vec<u128> = left.iter().map(|record| record.hash).collect();
                let known = DB::known(open.connection(), &self.sql, &hashes).await.map_err(failed)?;
                left.retain(|record| known.iter().all(|(hash, _)| *hash != record.hash));
                found.extend(known);
            }
            if left.is_empty() {
                return Ok((open, found));
            }
        }
        Err(failed(sqlx::Error::Protocol("its record comes and goes".to_owned())))
    }

    /// After a commit whose answer is lost: the records that are there all the same. Their messages are done, and may have
    /// no attempt left to find that out by.
    pub(super) async fn found_after(&self, error: &SqlError, hashes: &[u128]) -> HashSet<u128> {
        if !error.is_unavailable() || hashes.is_empty() {
            return HashSet::new();
        }
        let look = async {
            let mut connection = self.pool.acquire().await?;
            DB::known(&mut connection, &self.sql, hashes).await
        };
        // Not to be known is as not there: the next attempt finds out.
        let known = timeout(LOOK, look).await.ok().and_then(Result::ok).unwrap_or_default();
        known.into_iter().map(|(hash, _)| hash).collect()
    }

    pub(super) async fn open(&self) -> Result<Open<DB>, SqlError> {
        let open = async {
            let turn = self.turn().await;
            Open::begin(&self.pool, turn).await
        };
        open.await.map_err(|error| SqlError::driver("the inbox has no transaction for the message", error))
    }

    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.writer.clone()?.acquire_owned().await.ok()
    }

    /// The source is paused, and what is held waits, until there is a transaction to be had.
    pub(super) fn is_away(self: &Arc<Self>, error: SqlError) {
        if self.availability.set(false) {
            tracing::error!(%error, source = std::error::Error::source(&error), consumer = %self.config.consumer, "waiting for the database");
            tokio::spawn(probe(Arc::downgrade(self)));
        }
    }

    pub(super) fn unused(&self) {
        if !self.config.must_be_used {
            return;
        }
        self.meter.unused();
        self.unused.call_once(|| {
            tracing::warn!(
                consumer = %self.config.consumer,
                "a handler succeeded without its transaction: what it did may happen again; it needs an argument `Tx`"
            );
        });
    }
}

/// Ends the outage as soon as a record can be written, or the database says why not.
async fn probe<DB: Database>(shared: Weak<Shared<DB>>) {
    let mut wait = FIRST_PAUSE;
    loop {
        sleep(wait).await;
        let Some(shared) = shared.upgrade() else { return };
        // A full disk and a standby begin transactions.
        match shared.try_record().await {
            Err(error) if is_outage(&error) => wait = (wait * 2).min(LONGEST_PAUSE),
            _ => {
                tracing::info!(consumer = %shared.config.consumer, "the database answers again");
                shared.availability.set(true);
                return;
            }
        }
    }
}

fn is_outage(error: &SqlError) -> bool {
    (error.is_unavailable() || error.is_standby()) && !error.is_contended()
}

/// Writes a record that no other process waits for. The transaction has to be rolled back.
pub(super) async fn probe_record<DB: Database>(open: &mut Open<DB>, sql: &Sql) -> Result<u128, SqlError> {
    let hash = fingerprint(format!("{:?}", std::time::SystemTime::now()).as_bytes());
    let record = Record { hash, key: bytes::Bytes::from_static(b"check"), fingerprint: None };
    let written = DB::record(open.connection(), sql, &[&record]).await;
    written.map_err(|error| SqlError::driver("the inbox cannot be used", error))?;
    Ok(hash)
}

/// What becomes of a message whose record is there.
pub(super) fn known(print: Option<u128>, recorded: Option<u128>) -> Result<Outcome, Failure> {
    match (print, recorded) {
        (Some(print), Some(recorded)) if print != recorded => {
            Err(Failure::conflict("this idempotency key was used for another payload"))
        }
        _ => Ok(Outcome::Duplicate),
    }
}

impl<S: Clone, DB: Database> Clone for Inbox<S, DB> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: fmt::Debug, DB: Database> fmt::Debug for Inbox<S, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("inner", &self.inner).finish_non_exhaustive()
    }
}
