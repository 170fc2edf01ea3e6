//! The thread that owns the driver's consumer: it polls, whatever the runtime does.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use consumer_core::Tag;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as DriverError, RDKafkaErrorCode},
    message::{BorrowedMessage, Message as _},
};

use crate::{
    builder::Options,
    codes::{is_final, is_of_a_rebalance, is_outage, is_refused},
    commit::{Committer, Gone},
    config::Connection,
    convert,
    error::{KafkaError, Kind},
    group::{join, leave},
    partition::Partition,
    rebalance::Callbacks,
    retry::waiting,
    shared::{Control, Queued, Shared},
    trouble::Trouble,
};

/// Messages that go over to the runtime at once.
const BATCH: usize = 128;
/// How long a poll waits for a message; requests of the source wait as long.
const POLL: Duration = Duration::from_millis(20);
/// With a full buffer the partitions are paused only after this long, since that throws away what was prefetched.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a flush tries to commit.
const FLUSH: Duration = Duration::from_secs(10);
const RETRY_COMMIT: Duration = Duration::from_millis(500);
const AFTER_REBALANCE: Duration = Duration::from_millis(50);
/// How often the same trouble is told.
const WORD: Duration = Duration::from_secs(10);

pub(crate) fn spawn(
    config: ClientConfig,
    connection: Connection,
    options: Arc<Options>,
    shared: Arc<Shared>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("kafka-source".to_owned()).spawn(move || {
        let work = || {
            let (brokers, trouble) = (connection.brokers().to_owned(), Trouble::new(&config));
            let callbacks = Callbacks::new(brokers, trouble, options, shared.clone());
            match join(&config, &connection, callbacks) {
                Ok((consumer, committer)) => Worker::new(consumer, shared.clone(), committer).run(),
                Err(error) => {
                    shared.fail(&error);
                    Ok(())
                }
            }
        };
        // Nobody else would tell the runtime, which would wait for ever.
        let outcome = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            let message = "the thread of the kafka source has panicked".to_owned();
            shared.fail(&KafkaError::new(Kind::Other, &*message));
            Err(message)
        });
        shared.closed(outcome);
    })
}

struct Worker {
    consumer: Arc<BaseConsumer<Callbacks>>,
    callbacks: Arc<Callbacks>,
    shared: Arc<Shared>,
    committer: Committer,
    batch: Vec<Queued>,
    received: bool,
    /// Since when the buffer is full.
    full_since: Option<Instant>,
    next_commit: Instant,
    /// Set after a commit that failed.
    retry_commit: Option<Instant>,
    next_look: Instant,
    /// When it is said next that the group does not let this member in.
    next_word: Instant,
    warned: Option<(RDKafkaErrorCode, Instant)>,
    flush: Option<(u64, Instant)>,
    flushed: Result<(), String>,
    /// Of what was acked in partitions that have gone.
    kept: Result<(), String>,
}

impl Worker {
    fn new(consumer: Arc<BaseConsumer<Callbacks>>, shared: Arc<Shared>, committer: Committer) -> Self {
        let callbacks = consumer.context().clone();
        let now = Instant::now();
        let next_commit = now + callbacks.options.commit_every;
        Self {
            consumer,
            callbacks,
            shared,
            committer,
            batch: Vec::with_capacity(BATCH),
            received: false,
            full_since: None,
            next_commit,
            retry_commit: None,
            next_look: now,
            next_word: now + WORD,
            warned: None,
            flush: None,
            flushed: Ok(()),
            kept: Ok(()),
        }
    }

    fn run(mut self) -> Result<(), String> {
        while !self.shared.is_closing() {
            self.serve_requests();
            self.hold();
            if self.full_since.is_some() && !self.is_holding() {
                self.shared.wait_for_room(PATIENCE / 10);
            } else {
                self.poll();
            }
        }
        self.close()
    }

    fn is_holding(&self) -> bool {
        self.callbacks.holding.load(Ordering::Relaxed)
    }

    /// Back-pressure: waits without polling for a while, then pauses and polls for the callbacks alone.
    fn hold(&mut self) {
        match self.full_since {
            None if self.shared.is_full() => self.full_since = Some(Instant::now()),
            Some(_) if self.shared.is_low() => self.full_since = None,
            _ => {}
        }
        let hold = self.full_since.is_some_and(|since| since.elapsed() > PATIENCE);
        if hold != self.is_holding() && (hold || self.full_since.is_none()) {
            self.callbacks.holding.store(hold, Ordering::Relaxed);
            self.pause(hold);
        }
    }

    fn pause(&self, pause: bool) {
        let outcome = if pause {
            let all = self.callbacks.assignment().list(|_| true);
            self.consumer.pause(&all)
        } else {
            let all = self.callbacks.assignment().list(|slot| !slot.paused);
            self.consumer.resume(&all)
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, pause, "partitions could not be paused or resumed");
        }
    }

    fn poll(&mut self) {
        let mut wait = POLL;
        let callbacks = self.callbacks.clone();
        while self.batch.len() < BATCH {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => {
                    wait = Duration::ZERO;
                    let over = take(&callbacks, &message, &mut self.batch);
                    drop(message);
                    if over || self.is_holding() {
                        self.pause_over_limit();
                        break;
                    }
                }
                Some(Err(error)) => self.on_error(&error),
                None => break,
            }
        }
        self.release_due();
        if !self.batch.is_empty() {
            self.received = true;
            self.shared.push(&mut self.batch);
        }
    }

    /// Of what waits at the source, what is due goes on.
    fn release_due(&mut self) {
        if self.callbacks.options.retry.is_empty() || self.is_holding() {
            return;
        }
        let (now, limit) = (Instant::now(), self.callbacks.options.max_uncommitted);
        for slot in self.callbacks.assignment().slots_mut() {
            slot.release_due(now, limit, &mut self.batch);
        }
    }

    /// Pauses partitions with too much uncommitted or waiting, and all of them while holding: a new one may have come.
    fn pause_over_limit(&self) {
        let limit = self.callbacks.options.max_uncommitted;
        let mut assignment = self.callbacks.assignment();
        for slot in assignment.slots_mut() {
            slot.paused = slot.paused || slot.is_over(limit);
        }
        if self.is_holding() {
            drop(assignment);
            return self.pause(true);
        }
        let list = assignment.list(|slot| slot.paused);
        drop(assignment);
        if let Err(error) = self.consumer.pause(&list) {
            tracing::debug!(%error, "partitions could not be paused");
        }
    }

    /// Resumes partitions whose offsets have been committed meanwhile, or whose messages have become due.
    fn resume_below_limit(&self) {
        let limit = self.callbacks.options.max_uncommitted;
        let mut assignment = self.callbacks.assignment();
        let list = assignment.list(|slot| slot.paused && slot.is_below(limit));
        for slot in assignment.slots_mut() {
            slot.paused = slot.paused && !slot.is_below(limit);
        }
        drop(assignment);
        if list.count() > 0
            && !self.is_holding()
            && let Err(error) = self.consumer.resume(&list)
        {
            tracing::debug!(%error, "partitions could not be resumed");
        }
    }

    fn on_error(&mut self, error: &DriverError) {
        let code = error.rdkafka_error_code();
        let fatal = match error {
            DriverError::MessageConsumptionFatal(_) => true,
            _ => code.is_some_and(|code| is_final(code, self.received)),
        };
        if fatal {
            let callbacks = &self.callbacks;
            // The code alone says no more than that it is fatal.
            let cause =
                self.consumer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"));
            let cause = cause.unwrap_or_else(|| error.to_string());
            let kind = match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::TopicAuthorizationFailed,
                ) => Kind::Denied,
                _ => Kind::Other,
            };
            let message = format!(
                "the group `{}` cannot consume {:?} at kafka {}: {cause}",
                callbacks.options.scope(),
                callbacks.options.topics,
                callbacks.brokers
            );
            self.shared.fail(&KafkaError::new(kind, message));
        } else if let Some(code) = code
            && !is_outage(code)
            && self.warned.is_none_or(|(last, at)| last != code || at.elapsed() >= WORD)
        {
            self.warned = Some((code, Instant::now()));
            tracing::warn!(%error, group = self.callbacks.options.scope(), "kafka does not deliver as it should");
        }
        tracing::debug!(%error, fatal, "kafka consumer error");
    }

    /// A start that does not get on is not an error, since the group may be waiting for another member; but it shows.
    fn speak_while_joining(&mut self, now: Instant) {
        if self.callbacks.has_joined() || now < self.next_word {
            return;
        }
        self.next_word = now + WORD;
        let late = DriverError::Global(RDKafkaErrorCode::OperationTimedOut);
        let doing = format!("joining the group `{}`", self.callbacks.options.scope());
        let reason = self.callbacks.trouble.explain(&self.callbacks.brokers, &doing, &late);
        tracing::warn!(%reason, "no partitions were assigned yet; the source goes on trying");
    }

    /// Commits, flushes and the state of partitions, each as it is due.
    fn serve_requests(&mut self) {
        let now = Instant::now();
        let wanted = self.shared.flush_wanted();
        match self.flush {
            Some((ticket, _)) if ticket == wanted => {}
            None if wanted == self.shared.flush_done() => {}
            // Anew, so that what was acked since the last request is under it too.
            _ => self.flush = Some((wanted, now)),
        }
        if now < self.next_look && self.flush.is_none() {
            return;
        }
        self.next_look = now + POLL;
        self.speak_while_joining(now);
        self.resume_below_limit();
        let half = self.callbacks.options.max_uncommitted / 2;
        let early = || self.callbacks.assignment().slots().iter().any(|slot| slot.uncommitted() > half);
        let due = self.flush.is_some() || now >= self.next_commit || early();
        self.serve_commits(now, due);
    }

    /// Takes the answer to the last commit and starts the next one when it is due.
    fn serve_commits(&mut self, now: Instant, due: bool) {
        match self.committer.answer() {
            Ok(None) => {}
            Ok(Some((commit, Ok(())))) => self.callbacks.assignment().committed(&commit),
            Ok(Some((_, Err(error)))) => {
                let passing = is_of_a_rebalance(&error);
                if !passing {
                    tracing::warn!(%error, "offsets were not committed; they will be tried again");
                }
                self.retry_commit = Some(now + if passing { AFTER_REBALANCE } else { RETRY_COMMIT });
                if is_refused(&error) {
                    self.answer_flush(Err(self.not_committed(&error)));
                }
            }
            Err(Gone) => {
                let why = self.not_committed(&"the thread that commits has panicked");
                self.shared.fail(&KafkaError::new(Kind::Other, &*why));
                self.answer_flush(Err(why));
            }
        }
        if self.flush.is_some_and(|(_, since)| since.elapsed() > FLUSH) {
            self.answer_flush(Err(self.not_committed(&"no answer in time")));
        }
        if !due || self.committer.is_busy() || self.retry_commit.is_some_and(|at| now < at) {
            return;
        }
        self.retry_commit = None;
        self.next_commit = now + self.callbacks.options.commit_every;
        self.tell_lost();
        let commit = self.callbacks.assignment().to_commit();
        match commit {
            Some(commit) => self.committer.commit(commit),
            None => self.answer_flush(Ok(())),
        }
    }

    /// Tells the runtime that something acked went with its partition, and keeps it for the next flush.
    fn tell_lost(&mut self) {
        let lost = self.callbacks.assignment().take_lost();
        if lost.is_empty() {
            return;
        }
        for (partition, messages) in lost {
            self.shared.control(Control::Unsettled { scope: partition.scope, messages });
            tracing::warn!(
                topic = &*partition.topic,
                partition = partition.id,
                messages,
                group = self.callbacks.options.scope(),
                brokers = self.callbacks.brokers,
                "acked, and not committed when the partition went: may be delivered again"
            );
        }
        let why = self.not_committed(&"a partition was taken away before that");
        self.shared.lost(why.clone());
        self.kept = Err(why);
    }

    fn not_committed(&self, why: &dyn std::fmt::Display) -> String {
        let callbacks = &self.callbacks;
        format!(
            "offsets of the group `{}` were not committed at kafka {}: {why}; what was acked since the last commit may \
             be delivered again",
            callbacks.options.scope(),
            callbacks.brokers
        )
    }

    fn answer_flush(&mut self, outcome: Result<(), String>) {
        if let Some((ticket, _)) = self.flush.take() {
            self.flushed = outcome.clone();
            self.shared.flush_answered(ticket, outcome);
        }
    }

    fn serve_while_closing(&mut self, commit: bool) {
        self.serve_commits(Instant::now(), commit);
        // Nothing is delivered any more: what is polled comes again to whoever has the partition next.
        let _ = self.consumer.poll(Duration::from_millis(1));
    }

    /// Commits the last offsets and leaves the group.
    fn close(mut self) -> Result<(), String> {
        let all = self.callbacks.assignment().list(|_| true);
        if let Err(error) = self.consumer.pause(&all) {
            tracing::debug!(%error, "partitions could not be paused");
        }
        self.flush = Some((u64::MAX, Instant::now()));
        // What is lost is known when no commit is on its way.
        while self.flush.is_some() && self.committer.is_busy() {
            self.serve_while_closing(false);
        }
        if !self.committer.is_busy() {
            self.tell_lost();
        }
        // A close does not answer for what was lost before: that is left to a flush.
        self.kept = Ok(());
        while self.flush.is_some() {
            self.serve_while_closing(true);
        }
        let Worker { consumer, committer, flushed, kept, .. } = self;
        if !leave(consumer, Some(committer)) {
            tracing::warn!("kafka did not answer when the source left its group");
        }
        // A loss says more than that there was no answer in time.
        kept.and(flushed)
    }
}

/// Turns a message into a delivery, or lets it wait. Whether its partition has too much uncommitted or waiting now.
fn take(callbacks: &Callbacks, message: &BorrowedMessage<'_>, batch: &mut Vec<Queued>) -> bool {
    let mut assignment = callbacks.assignment();
    let Some(slot) = assignment.find(message.topic(), message.partition()) else { return false };
    let offset = u64::try_from(message.offset()).unwrap_or_default();
    if slot.last_offset.is_some_and(|last| offset <= last) {
        // The topic was deleted and made anew, or its end was lost: offsets mean other messages now.
        tracing::warn!(
            topic = &*slot.partition.topic,
            partition = slot.partition.id,
            offset,
            last = slot.last_offset,
            "offsets went backwards: the partition starts anew"
        );
        let old = slot.partition.clone();
        let new = Partition::new(old.topic.clone(), old.id);
        callbacks.shared.control(Control::Closing { partition: old, within: Duration::ZERO });
        callbacks.shared.control(Control::Assigned(new.clone()));
        let delay = slot.waiting.as_ref().map(|waiting| waiting.delay);
        assignment.add(new, delay);
        drop(assignment);
        return take(callbacks, message, batch);
    }
    let (message, bytes) = convert::message(message, &slot.partition.topic);
    if slot.last_offset.replace(offset).is_none() {
        slot.partition.begin.store(i64::try_from(offset).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
    let limit = callbacks.options.max_uncommitted;
    let queued = Queued { tag: Tag { scope: slot.partition.scope, seq: offset }, message, bytes };
    if let Some(waiting) = &mut slot.waiting {
        let (now, wait) = (Instant::now(), waiting::wait(&queued.message, waiting.delay, SystemTime::now()));
        waiting.push(now + wait, queued);
        // What is due makes room at once. With the runtime's buffer full it stays here.
        if !callbacks.holding.load(Ordering::Relaxed) {
            slot.release_due(now, limit, batch);
        }
    } else {
        slot.taken += 1;
        batch.push(queued);
    }
    slot.is_over(limit)
}
