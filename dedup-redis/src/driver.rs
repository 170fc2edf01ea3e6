//! Carries out what is enqueued: N pipelines, each with a connection of its own, and one watcher of deadlines.
//!
//! A pipeline that is free takes whatever waits and sends it together; while it waits for the replies, the next batch
//! gathers. So batches grow with the load, and a single operation never waits for company.

use std::{sync::Arc, time::Duration};

use consumer_core::dedup::StoreError;
use redis::{Cmd, RedisError};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    availability::Availability,
    clock::Clock,
    connection::{Connection, Opener, Reply, Settings},
    error::ConnectError,
    greeting::{self, Greeting},
    operation::{Next, Operation, Replies, Sending},
    queue::Queue,
    recent::Recent,
    stats::Counters,
};

/// The most operations in one batch.
const BATCH: usize = 512;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How often waiting operations are looked at, as a part of the response deadline.
const WATCH: u32 = 8;

/// What pipelines, watcher and handles share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) availability: Availability,
    pub(crate) clock: Clock,
    pub(crate) recent: Recent,
    pub(crate) counters: Counters,
    pub(crate) settings: Arc<Settings>,
    pub(crate) prefix: Vec<u8>,
    /// The run of the server whose data we know; held while completions are recorded again, so that nobody claims a
    /// key before that.
    run: tokio::sync::Mutex<Known>,
}

struct Known {
    run: String,
    warned: bool,
}

impl Shared {
    pub(crate) fn new(settings: Arc<Settings>, prefix: Vec<u8>, clock: Clock, greeting: Greeting) -> Self {
        Self {
            queue: Queue::default(),
            availability: Availability::default(),
            clock,
            recent: Recent::default(),
            counters: Counters::default(),
            settings,
            prefix,
            run: tokio::sync::Mutex::new(Known { run: greeting.run, warned: greeting.evicts.is_some() }),
        }
    }

    fn no_answer(&self, what: &'static str) -> StoreError {
        let error = StoreError::new(format!("{} {what}", self.settings.target));
        match self.availability.why() {
            Some(why) => error.with_source(why),
            None => error,
        }
    }

    fn trouble(&self, why: &str) {
        let why = self.settings.redact(why.to_owned());
        if self.availability.goes_down(&why) {
            tracing::warn!(redis = %self.settings.target, error = why, "redis is down");
        }
    }

    fn well(&self) {
        if self.availability.comes_up() {
            tracing::info!(redis = %self.settings.target, "redis is up again");
        }
    }

    /// Answers what is over with an error.
    fn fail_over_due(&self, operations: &mut [Operation]) {
        for operation in operations.iter_mut() {
            if operation.is_resolution() {
                tracing::error!(redis = %self.settings.target, "what became of a claim could not be recorded in time");
                operation.fail(|| self.no_answer("could not record it before it lost its meaning"));
            } else {
                operation.fail(|| self.no_answer("gave no answer in time"));
            }
        }
    }
}

/// Ends with the runtime; then nobody must wait for an answer any more.
struct UntilTheEnd(Arc<Shared>);

impl Drop for UntilTheEnd {
    fn drop(&mut self) {
        self.0.queue.kill();
    }
}

/// Starts the tasks on the current runtime. The first pipeline uses the connection that is already open.
pub(crate) fn spawn(shared: &Arc<Shared>, openers: Vec<Opener>, first: Connection) {
    let mut first = Some(first);
    for opener in openers {
        let connection = first.take();
        let fresh = connection.is_none();
        let pipeline = Pipeline { shared: shared.clone(), opener, connection, failures: 0, fresh };
        tokio::spawn(pipeline.run());
    }
    tokio::spawn(watch(shared.clone()));
}

/// Fails what waits for longer than it may. What is out is the pipelines' own business.
async fn watch(shared: Arc<Shared>) {
    let _end = UntilTheEnd(shared.clone());
    let pause = (shared.settings.response_timeout / WATCH).max(Duration::from_millis(1));
    loop {
        match shared.queue.take_over_due(Instant::now()) {
            None if shared.queue.is_finished() => return,
            None => shared.queue.watched.notified().await,
            Some(mut over) => {
                if !over.is_empty() {
                    shared.fail_over_due(&mut over);
                    shared.queue.answered(over.iter());
                }
                sleep(pause).await;
            }
        }
    }
}

struct Pipeline {
    shared: Arc<Shared>,
    opener: Opener,
    connection: Option<Connection>,
    /// Failures in a row.
    failures: u32,
    /// It has never had a connection.
    fresh: bool,
}

impl Pipeline {
    async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let Some(mut connection) = self.connection.take() else {
                if self.shared.queue.is_finished() {
                    return;
                }
                self.reconnect().await;
                continue;
            };
            let taken = if self.shared.availability.is_known_down() {
                if self.shared.queue.is_empty() && !self.probe(&mut connection).await {
                    continue;
                }
                // Looks again now and then: someone has to see that it is up when nobody dares to send anything.
                timeout(LONGEST_BACKOFF / 4, self.shared.queue.take(BATCH, &mut batch)).await
            } else {
                Ok(self.shared.queue.take(BATCH, &mut batch).await)
            };
            let usable = match taken {
                Ok(false) => return,
                Ok(true) => self.send(&mut connection, &mut batch).await,
                Err(_) => true,
            };
            if usable {
                self.connection = Some(connection);
            }
        }
    }

    /// Asks for a sign of life.
    async fn probe(&mut self, connection: &mut Connection) -> bool {
        let limit = self.shared.settings.response_timeout;
        let why = match timeout(limit, connection.run(vec![redis::cmd("PING")])).await {
            Ok(Ok(replies)) if replies.iter().all(Result::is_ok) => {
                self.failures = 0;
                self.shared.well();
                return true;
            }
            Ok(Ok(_)) => "it refuses PING".to_owned(),
            Ok(Err(error)) => self.shared.settings.describe(&error),
            Err(_) => format!("no reply within {limit:?}"),
        };
        self.failed(&why, true).await;
        false
    }

    /// Sends a batch and deals with the replies. Whether the connection may be used again.
    async fn send(&mut self, connection: &mut Connection, batch: &mut Vec<Operation>) -> bool {
        let shared = self.shared.clone();
        let sent = Instant::now();
        let sending = Sending { prefix: &shared.prefix, now: shared.clock.now(sent) };
        let mut commands = Vec::with_capacity(batch.len() + 1);
        let asks_time = shared.clock.is_stale(sent);
        if asks_time {
            commands.push(greeting::time());
        }
        for operation in batch.iter_mut() {
            operation.write(&sending, &mut commands);
        }
        if !commands.is_empty() {
            shared.counters.sent(commands.len());
        }
        let replies = self.exchange(connection, commands, batch, sent).await;
        let received = Instant::now();
        let replies = match replies {
            Ok(replies) => replies,
            Err(why) => {
                for operation in batch.iter_mut() {
                    operation.doubt();
                }
                shared.counters.retried(batch.len());
                self.put_back(std::mem::take(batch));
                let hangs = received >= sent + shared.settings.response_timeout;
                self.failed(&why, hangs).await;
                return false;
            }
        };
        let mut replies = Replies { replies: replies.into_iter(), trouble: None };
        if asks_time
            && let Some(Ok(time)) = replies.replies.next()
            && let Some(millis) = greeting::parse_time(&time)
        {
            shared.clock.set(millis, sent, received);
        }
        let (mut done, mut again, mut later) = (Vec::with_capacity(batch.len()), Vec::new(), 0);
        for mut operation in batch.drain(..) {
            match operation.read(&mut replies) {
                Next::Done => done.push(operation),
                next => {
                    later += usize::from(next == Next::Later);
                    again.push(operation);
                }
            }
        }
        let well = replies.trouble.is_none() && !shared.availability.is_known_down();
        shared.recent.heard(received, well, done.iter().filter_map(Operation::completion));
        shared.queue.answered(done.iter());
        let nothing_worked = done.is_empty() && later == again.len() && later > 0;
        shared.counters.retried(later);
        self.put_back(again);
        let Some((why, reopen)) = replies.trouble else {
            self.failures = 0;
            shared.well();
            return true;
        };
        if nothing_worked || reopen {
            self.failed(&why, false).await;
        } else {
            self.wait().await;
        }
        !reopen && self.failures < 2
    }

    /// Sends the commands and waits for the replies, at most for the response deadline. Meanwhile it answers the
    /// operations whose own deadline passes.
    async fn exchange(
        &self,
        connection: &mut Connection,
        commands: Vec<Cmd>,
        batch: &mut [Operation],
        sent: Instant,
    ) -> Result<Vec<Reply>, String> {
        let limit = sent + self.shared.settings.response_timeout;
        let describe = |error: RedisError| self.shared.settings.describe(&error);
        let mut exchange = std::pin::pin!(connection.run(commands));
        loop {
            let now = Instant::now();
            let open = batch.iter().filter(|operation| !operation.is_resolution());
            let next = open.map(|operation| operation.until).filter(|until| *until > now).min();
            tokio::select! {
                biased;
                replies = &mut exchange => return replies.map_err(describe),
                () = sleep_until(next.unwrap_or(limit).min(limit)) => {}
            }
            let now = Instant::now();
            for operation in batch.iter_mut().filter(|op| !op.is_resolution() && op.is_over(now)) {
                self.shared.fail_over_due(std::slice::from_mut(operation));
            }
            if now >= limit {
                return Err(format!("no reply within {:?}", self.shared.settings.response_timeout));
            }
        }
    }

    /// Operations that are to be sent again go to the front, but those whose time has come.
    fn put_back(&self, operations: Vec<Operation>) {
        if operations.is_empty() {
            return;
        }
        let now = Instant::now();
        let (mut over, again): (Vec<_>, Vec<_>) = operations.into_iter().partition(|op| op.is_over(now));
        self.shared.fail_over_due(&mut over);
        self.shared.queue.push_back_again(again.into_iter());
        self.shared.queue.answered(over.iter());
    }

    /// Notes a failure and waits before the next try. The first one is followed at once by a reconnect, which tells
    /// whether the server is gone or just this connection, unless that is `certain`.
    async fn failed(&mut self, why: &str, certain: bool) {
        if self.failures > 0 || certain {
            self.shared.trouble(why);
        }
        if self.failures > 0 {
            self.wait().await;
        }
        self.failures = self.failures.saturating_add(1);
    }

    async fn wait(&self) {
        let longest = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(8)).min(LONGEST_BACKOFF);
        sleep(longest.mul_f64(0.5 + random() / 2.0)).await;
    }

    /// Opens a connection, or waits a little after a failure.
    async fn reconnect(&mut self) {
        let shared = self.shared.clone();
        let connected = greeting::connect(&mut self.opener, &shared.settings, &shared.clock).await;
        let (mut connection, greeting) = match connected {
            Ok(connected) => connected,
            Err(error) => return self.unreachable(&error).await,
        };
        if !std::mem::take(&mut self.fresh) {
            shared.counters.reconnected();
        }
        match self.recognise(&mut connection, greeting).await {
            Ok(()) => self.connection = Some(connection),
            Err(why) => self.failed(&why, true).await,
        }
    }

    async fn unreachable(&mut self, error: &ConnectError) {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        self.failed(&format!("{error}{source}"), true).await;
    }

    /// Sees whether this is still the server whose data we know; if not, it may have lost the last completions.
    async fn recognise(&mut self, connection: &mut Connection, greeting: Greeting) -> Result<(), String> {
        let shared = self.shared.clone();
        let mut known = shared.run.lock().await;
        if let Some(evicts) = &greeting.evicts
            && !known.warned
        {
            known.warned = true;
            warn_of_eviction(&shared.settings, evicts);
        }
        if known.run == greeting.run {
            return Ok(());
        }
        let mut commands = shared.recent.again(Instant::now(), &shared.prefix);
        let count = commands.len();
        while !commands.is_empty() {
            let part = commands.split_off(commands.len().saturating_sub(BATCH));
            shared.counters.sent(part.len());
            let patience = shared.settings.response_timeout;
            let replies = timeout(patience, connection.run(part)).await;
            let replies = replies.map_err(|_| format!("no reply within {patience:?}"))?;
            let replies = replies.map_err(|error| shared.settings.describe(&error))?;
            if let Some(Err(trouble)) = replies.into_iter().find(Result::is_err) {
                return Err(format!("{trouble:?}"));
            }
        }
        known.run = greeting.run;
        drop(known);
        if count > 0 {
            shared.counters.reasserted(count);
            tracing::info!(redis = %shared.settings.target, count, "recent completions are recorded again");
        }
        Ok(())
    }
}

pub(crate) fn warn_of_eviction(settings: &Settings, evicts: &str) {
    tracing::warn!(
        redis = %settings.target,
        "redis may evict remembered ids ({evicts}): a duplicate of an evicted id runs the handler again; \
         set maxmemory-policy to noeviction, or use a redis of its own for this"
    );
}

/// A number from 0 to 1 without a dependency on a generator: for jitter it is good enough.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}
