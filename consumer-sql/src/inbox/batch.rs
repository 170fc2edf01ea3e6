//! Many messages in one transaction, each with an outcome of its own.
//!
//! A batch is a task. It writes the records of all its messages at once, and then lends the transaction to one message
//! after another, which runs its handler in its own future and gives it back: so a message that is dropped drops its
//! handler alone. A savepoint around each undoes what has failed. What succeeded is answered after the commit.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consumer_core::{BoxError, Failure, Message, Outcome};
use sqlx::{AssertSqlSafe, Connection, SqlSafeStr};
use tokio::{
    sync::oneshot::{Receiver, Sender, channel},
    time::{sleep, timeout},
};
use tower::Service;

use super::{
    failures::{BatchFailed, failed, gone, handed_back, kept, lost, rolled_back},
    service::{FIRST_PAUSE, LONGEST_PAUSE, Shared, known},
    statements::Record,
    transaction::{Lent, Open, not_committed},
};
use crate::{Database, SqlError};

/// What one message has left behind is undone within this time, or the batch is given up.
const UNDO: Duration = Duration::from_secs(5);

/// Messages that are remembered to be alone next time.
const ALONE: usize = 4096;

const SAVEPOINT: &str = "SAVEPOINT consumer_message";
const RELEASE: &str = "RELEASE SAVEPOINT consumer_message";

/// Tells a message what became of its transaction.
type Committed = Sender<Result<(), Arc<SqlError>>>;

/// The messages that wait, and how many batches are at work.
pub(super) struct Batches<DB: Database> {
    max: usize,
    at_once: usize,
    queue: Mutex<Queue<DB>>,
}

struct Queue<DB: Database> {
    waiting: VecDeque<Entry<DB>>,
    /// Tasks at work.
    running: usize,
    /// Messages whose batch could not be committed, for one of them may be the cause.
    alone: HashSet<u128>,
}

/// A message that waits for its turn.
pub(super) struct Entry<DB: Database> {
    record: Option<Record>,
    turn: Sender<Turn<DB>>,
}

impl<DB: Database> Entry<DB> {
    fn hash(&self) -> Option<u128> {
        self.record.as_ref().map(|record| record.hash)
    }
}

enum Turn<DB: Database> {
    Come(Seat<DB>),
    /// Its record was there, with this fingerprint.
    Known(Option<u128>),
    Failed(Arc<SqlError>),
}

/// The transaction while a message has it. Dropped, it goes back to the batch, and the message has failed.
struct Seat<DB: Database> {
    lent: Lent<DB>,
    back: Option<Sender<Back<DB>>>,
}

/// How a message gives the transaction back.
struct Back<DB: Database> {
    /// None where somebody has kept it.
    open: Option<Open<DB>>,
    /// It has succeeded, and waits for the commit.
    committed: Option<Committed>,
}

impl<DB: Database> Seat<DB> {
    /// Whether the batch has the transaction back; a success is then told of the commit.
    fn leave(mut self, succeeded: bool) -> Option<Receiver<Result<(), Arc<SqlError>>>> {
        let (committed, answer) = channel();
        let open = self.lent.end();
        let is_back = open.is_some();
        let back = Back { open, committed: (succeeded && is_back).then_some(committed) };
        if let Some(sender) = self.back.take() {
            // A batch that is gone rolls back.
            let _ = sender.send(back);
        }
        is_back.then_some(answer)
    }
}

impl<DB: Database> Drop for Seat<DB> {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            let _ = back.send(Back { open: self.lent.end(), committed: None });
        }
    }
}

/// The way of one message through a batch.
pub(super) async fn handle<S, DB>(
    shared: &Arc<Shared<DB>>,
    batches: &Batches<DB>,
    record: Option<Record>,
    mut inner: S,
    message: Message,
) -> Result<Outcome, Failure>
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send> + Send,
    DB: Database,
{
    let print = record.as_ref().and_then(|record| record.fingerprint);
    let (turn, come) = channel();
    batches.enter(shared, Entry { record, turn });
    let turn = message.answered_or_cancelled(come).await.ok_or_else(handed_back)?;
    let seat = match turn.map_err(|_| gone())? {
        Turn::Come(seat) => seat,
        Turn::Known(recorded) => return known(print, recorded),
        Turn::Failed(error) => return Err(Failure::transient(BatchFailed(error))),
    };
    if message.cancellation().is_cancelled() {
        return Err(handed_back());
    }
    // The call is dropped before the seat: then the transaction is back.
    let answer = inner.call(message.with_extension(seat.lent.slot())).await;
    let answer = answer.map(Into::into).map_err(Failure::from_error);
    let was_taken = seat.lent.was_taken();
    match (seat.leave(matches!(answer, Ok(Outcome::Processed))), answer) {
        (None, Ok(Outcome::Processed)) => Err(kept()),
        (Some(committed), Ok(Outcome::Processed)) => {
            if !was_taken {
                shared.unused();
            }
            let committed = committed.await.map_err(|_| gone())?;
            committed.map_err(|error| Failure::transient(BatchFailed(error)))?;
            Ok(Outcome::Processed)
        }
        (_, answer) => answer,
    }
}

impl<DB: Database> Batches<DB> {
    pub(super) fn new(max: usize, at_once: usize) -> Self {
        Self {
            max,
            at_once,
            queue: Mutex::new(Queue { waiting: VecDeque::new(), running: 0, alone: HashSet::new() }),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<DB>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue().waiting.len()
    }

    fn enter(&self, shared: &Arc<Shared<DB>>, entry: Entry<DB>) {
        let mut queue = self.queue();
        queue.waiting.push_back(entry);
        if queue.running < self.at_once {
            queue.running += 1;
            tokio::spawn(run(Running { shared: shared.clone(), has_ended: false }));
        }
    }

    /// What has gathered, but of each key one message only: the next batch finds out what became of it. Where nothing is
    /// left, the task that asks is at its end.
    fn next(&self) -> Option<Vec<Entry<DB>>> {
        let mut queue = self.queue();
        let (mut batch, mut hashes, mut left) = (Vec::new(), HashSet::new(), VecDeque::new());
        while batch.len() < self.max
            && let Some(entry) = queue.waiting.pop_front()
        {
            if entry.turn.is_closed() {
                continue;
            }
            let hash = entry.hash();
            if hash.is_some_and(|hash| queue.alone.contains(&hash)) {
                if !batch.is_empty() {
                    queue.waiting.push_front(entry);
                    break;
                }
                queue.alone.retain(|alone| Some(*alone) != hash);
                batch.push(entry);
                break;
            }
            if hash.is_none_or(|hash| hashes.insert(hash)) {
                batch.push(entry);
            } else {
                left.push_back(entry);
            }
        }
        left.append(&mut queue.waiting);
        queue.waiting = left;
        if batch.is_empty() {
            queue.running -= 1;
            return None;
        }
        Some(batch)
    }

    /// First in the next batch.
    fn again(&self, entries: Vec<Entry<DB>>) {
        let mut queue = self.queue();
        for entry in entries.into_iter().rev() {
            queue.waiting.push_front(entry);
        }
    }
}

/// A task that works on batches. Should it panic, another may take its place.
struct Running<DB: Database> {
    shared: Arc<Shared<DB>>,
    has_ended: bool,
}

impl<DB: Database> Drop for Running<DB> {
    fn drop(&mut self) {
        if let Some(batches) = self.shared.batches.as_ref().filter(|_| !self.has_ended) {
            batches.queue().running -= 1;
        }
    }
}

async fn run<DB: Database>(mut running: Running<DB>) {
    let shared = running.shared.clone();
    let Some(batches) = &shared.batches else { return };
    while let Some(entries) = batches.next() {
        let left = shared.one(entries).await;
        batches.again(left);
    }
    running.has_ended = true;
}

impl<DB: Database> Shared<DB> {
    /// One transaction. What it did not come to is given back.
    async fn one(self: &Arc<Self>, entries: Vec<Entry<DB>>) -> Vec<Entry<DB>> {
        let Some((open, entries)) = self.begin_batch(entries).await else { return Vec::new() };
        let mut batch = Batch::new(self, &entries);
        let mut entries = VecDeque::from(entries);
        let lent = batch.lend(open, &mut entries).await;
        let ended = match lent {
            Ok(open) if batch.committing.is_empty() => {
                open.rollback().await;
                Ok(())
            }
            Ok(open) => {
                let ended = open.commit().await.map_err(not_committed);
                if let Err(error) = &ended {
                    batch.answer_found(error).await;
                }
                ended
            }
            Err(error) => {
                if error.is_transaction_gone() {
                    self.take_back(&entries).await;
                }
                Err(error)
            }
        };
        batch.answer(ended);
        entries.into()
    }

    /// A handler has ended the transaction by itself, perhaps by COMMIT, and with it went the records of those whose turn
    /// was still to come: they would be duplicates of what has never happened.
    async fn take_back(self: &Arc<Self>, entries: &VecDeque<Entry<DB>>) {
        tracing::error!(
            consumer = %self.config.consumer,
            left = entries.len(),
            "a handler has ended the inbox's transaction by itself: it must say neither COMMIT nor ROLLBACK, which are \
             the layer's, and its message may now take effect twice or in part"
        );
        let forget: Vec<String> =
            entries.iter().filter_map(Entry::hash).map(|hash| self.sql.forget::<DB>(hash)).collect();
        if forget.is_empty() {
            return;
        }
        let forget = AssertSqlSafe(forget.join("; ")).into_sql_str();
        let mut pause = FIRST_PAUSE;
        loop {
            std::future::poll_fn(|cx| self.availability.poll_up(cx)).await;
            let done = async {
                let _turn = self.turn().await;
                DB::run(&mut *self.pool.acquire().await?, forget.clone()).await
            };
            let Err(error) = done.await.map_err(failed) else { return };
            tracing::warn!(%error, source = error.source(), consumer = %self.config.consumer, "records are still to be taken back");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Begins the transaction with all records, answers what was there, and gives back whose turn it is.
    async fn begin_batch(
        self: &Arc<Self>,
        mut entries: Vec<Entry<DB>>,
    ) -> Option<(Open<DB>, Vec<Entry<DB>>)> {
        let mut pause = Duration::ZERO;
        loop {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            std::future::poll_fn(|cx| self.availability.poll_up(cx)).await;
            entries.retain(|entry| !entry.turn.is_closed());
            // In one order in all processes, for they wait for each other's records.
            let mut records: Vec<&Record> =
                entries.iter().filter_map(|entry| entry.record.as_ref()).collect();
            records.sort_unstable_by_key(|record| record.hash);
            let begun = if entries.is_empty() { return None } else { self.begin(&records).await };
            match begun {
                Ok((open, found)) => {
                    let found: HashMap<u128, Option<u128>> = found.into_iter().collect();
                    let mut turns = Vec::with_capacity(entries.len());
                    for entry in entries {
                        match entry.record.as_ref().and_then(|record| found.get(&record.hash)) {
                            Some(print) => drop(entry.turn.send(Turn::Known(*print))),
                            None => turns.push(entry),
                        }
                    }
                    if turns.is_empty() {
                        open.discard();
                        return None;
                    }
                    return Some((open, turns));
                }
                Err(error) => match self.pause_after(error, pause) {
                    Ok(next) => pause = next,
                    Err(error) => {
                        let error = Arc::new(error);
                        for entry in entries {
                            let _ = entry.turn.send(Turn::Failed(error.clone()));
                        }
                        return None;
                    }
                },
            }
        }
    }
}

/// A batch at work.
struct Batch<'a, DB: Database> {
    shared: &'a Shared<DB>,
    /// Not for a single message, which is undone with its transaction.
    has_savepoints: bool,
    committing: Vec<(Option<u128>, Committed)>,
    /// The message that has the transaction, or has lost it.
    culprit: Option<u128>,
}

impl<'a, DB: Database> Batch<'a, DB> {
    fn new(shared: &'a Shared<DB>, entries: &[Entry<DB>]) -> Self {
        Self { shared, has_savepoints: entries.len() > 1, committing: Vec::new(), culprit: None }
    }

    /// Lends the transaction to one message after another.
    ///
    /// # Errors
    /// When it is lost.
    async fn lend(
        &mut self,
        mut open: Open<DB>,
        entries: &mut VecDeque<Entry<DB>>,
    ) -> Result<Open<DB>, SqlError> {
        if self.has_savepoints {
            run_statements(&mut open, SAVEPOINT.to_owned()).await?;
        }
        while let Some(entry) = entries.pop_front() {
            let hash = entry.hash();
            self.culprit = hash;
            let (back, came_back) = channel();
            let seat = Seat { lent: Lent::new(open, hash), back: Some(back) };
            // A message that is gone gives it back as well, by dropping it.
            let _ = entry.turn.send(Turn::Come(seat));
            let Back { open: still, committed } = came_back.await.map_err(|_| lost())?;
            open = still.ok_or_else(lost)?;
            if !open.get().is_in_transaction() {
                return Err(rolled_back());
            }
            if !self.has_savepoints {
                self.committing.extend(committed.map(|committed| (hash, committed)));
                return Ok(open);
            }
            let next = (!entries.is_empty()).then_some(SAVEPOINT);
            match committed {
                None => self.undo(&mut open, hash, next).await?,
                Some(committed) => {
                    let release = [Some(RELEASE), next].into_iter().flatten().collect::<Vec<_>>();
                    match run_statements(&mut open, release.join("; ")).await {
                        Ok(()) => self.committing.push((hash, committed)),
                        // A statement has failed, and the handler has not said so.
                        Err(error) => {
                            self.undo(&mut open, hash, next).await?;
                            let _ = committed.send(Err(Arc::new(error)));
                        }
                    }
                }
            }
        }
        self.culprit = None;
        Ok(open)
    }

    /// Takes back a message and its record, which was written before its savepoint.
    async fn undo(
        &self,
        open: &mut Open<DB>,
        hash: Option<u128>,
        next: Option<&str>,
    ) -> Result<(), SqlError> {
        let forget = hash.map(|hash| self.shared.sql.forget::<DB>(hash));
        let statements =
            [Some("ROLLBACK TO SAVEPOINT consumer_message"), Some(RELEASE), forget.as_deref(), next];
        let statements = statements.into_iter().flatten().collect::<Vec<_>>().join("; ");
        let undo = async {
            // A statement that the message has left behind is answered first. Its error is not one of these.
            let _ = open.connection().flush().await;
            run_statements(open, statements).await
        };
        match timeout(UNDO, undo).await {
            Ok(undone) => undone,
            Err(_) => Err(failed(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
        }
    }

    /// After a commit whose answer is lost.
    async fn answer_found(&mut self, error: &SqlError) {
        let hashes: Vec<u128> = self.committing.iter().filter_map(|(hash, _)| *hash).collect();
        let found = self.shared.found_after(error, &hashes).await;
        let is_found =
            |(hash, _): &mut (Option<u128>, Committed)| hash.is_some_and(|hash| found.contains(&hash));
        for (_, committed) in self.committing.extract_if(.., is_found) {
            let _ = committed.send(Ok(()));
        }
    }

    fn answer(self, ended: Result<(), SqlError>) {
        let ended = ended.map_err(Arc::new);
        if let (Err(error), Some(batches)) = (&ended, &self.shared.batches) {
            // Where it is not known who is the cause, it is one of these: next time it takes nobody along.
            let suspects =
                if error.is_unavailable() || !self.has_savepoints { &[][..] } else { &self.committing };
            let mut queue = batches.queue();
            if queue.alone.len() >= ALONE {
                // Of those nobody has come again.
                queue.alone.clear();
            }
            queue.alone.extend(suspects.iter().filter_map(|(hash, _)| *hash).chain(self.culprit));
        }
        for (_, committed) in self.committing {
            // Whoever dropped its future does not want to know.
            let _ = committed.send(ended.clone());
        }
    }
}

async fn run_statements<DB: Database>(open: &mut Open<DB>, statements: String) -> Result<(), SqlError> {
    DB::run(open.connection(), AssertSqlSafe(statements).into_sql_str()).await.map_err(failed)
}
