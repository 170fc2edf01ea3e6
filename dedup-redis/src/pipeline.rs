//! One pipeline: takes what waits, sends it together, deals with the replies.
//!
//! It takes only what it can serve: after trouble it has to prove, by a script and a write, that it works again. A
//! connection to a Cluster that lacks a node goes on with the others, while a task opens the one that replaces it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use redis::Cmd;
use tokio::{
    sync::Mutex,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    availability::{Change, Health},
    connection::{Connection, Opener, Reply, Trouble},
    driver::Shared,
    greeting,
    operation::{Next, Operation, Replies, Sending},
};

/// The most operations in one batch.
const BATCH: usize = 512;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// The runs of the servers behind a connection.
type Runs = BTreeSet<String>;

pub(crate) struct Pipeline {
    number: usize,
    shared: Arc<Shared>,
    opener: Arc<Mutex<Opener>>,
    connection: Option<Connection>,
    /// The runs behind its last connection. Each pipeline has its own: one may have written to a server that another has
    /// already left.
    runs: Runs,
    health: Health,
    /// Nothing has gone wrong since it was last seen to work.
    proven: bool,
    /// Failures in a row.
    failures: u32,
    /// It has never had a connection.
    fresh: bool,
    /// Opens the connection that is to replace one that lacks a part of the Cluster.
    opening: JoinSet<Result<(Connection, Runs), String>>,
    /// When the next one may be opened.
    not_before: Instant,
}

impl Pipeline {
    /// With the connection of which the runs are, or none yet.
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        opener: Opener,
        connection: Option<Connection>,
        runs: Runs,
    ) -> Self {
        Self {
            number,
            shared,
            opener: Arc::new(Mutex::new(opener)),
            health: if connection.is_some() { Health::Well } else { Health::Down },
            proven: connection.as_ref().is_some_and(|connection| connection.lacks().is_none()),
            failures: 0,
            fresh: connection.is_none(),
            connection,
            runs,
            opening: JoinSet::new(),
            not_before: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        let mut batch = Vec::new();
        while !shared.queue.is_finished() {
            let Some(mut connection) = self.connection.take() else {
                self.reconnect().await;
                continue;
            };
            if !self.proven && !self.probe(&mut connection).await {
                continue;
            }
            self.replace_if_lacking(&connection);
            let usable = tokio::select! {
                biased;
                Some(opened) = self.opening.join_next() => {
                    shared.queue.nudge();
                    self.adopt(opened, &mut connection);
                    true
                }
                more = shared.queue.take(BATCH, &mut batch) => {
                    if !more {
                        return;
                    }
                    self.send(&mut connection, &mut batch).await
                }
            };
            if usable {
                self.connection = Some(connection);
            }
        }
    }

    /// Sees whether scripts and writes are taken, on a Cluster by any node: a server that merely answers may be full,
    /// read-only, or forbid what is needed.
    async fn probe(&mut self, connection: &mut Connection) -> bool {
        let works = |reply: &Reply| !matches!(reply, Err(Trouble::Unavailable { .. } | Trouble::Missing(_)));
        let commands = connection.probe(&self.shared.prefix);
        let why = match connection.run(&self.shared.settings, commands).await {
            Ok(replies) if replies.chunks(2).any(|pair| pair.iter().all(works)) => {
                // Not all is forgotten: what goes wrong again and again has to wait in between.
                self.failures = self.failures.min(2);
                self.proven = true;
                self.is_up(connection);
                return true;
            }
            Ok(replies) => replies.into_iter().find(|reply| !works(reply)).and_then(Result::err).map_or_else(
                || "no node of the cluster can be reached".to_owned(),
                |trouble| trouble.to_string(),
            ),
            Err(why) => why,
        };
        self.failed(&why).await;
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
        let replies = self.exchange(connection, commands, batch).await;
        let received = Instant::now();
        let replies = match replies {
            Ok(replies) => replies,
            Err(why) => {
                for operation in batch.iter_mut() {
                    operation.doubt();
                }
                shared.counters.retried(batch.len());
                self.put_back(std::mem::take(batch), Next::Again);
                if received >= sent + shared.settings.response_timeout {
                    self.failed(&why).await;
                } else {
                    // Perhaps it is just this connection: a new one tells.
                    self.shaken(&why).await;
                }
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
        let (mut done, mut again, mut later) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        for mut operation in batch.drain(..) {
            match operation.read(&mut replies) {
                Next::Done => done.push(operation),
                Next::Again => again.push(operation),
                Next::Later => later.push(operation),
            }
        }
        let well =
            replies.trouble.is_none() && connection.lacks().is_none() && shared.availability.is_all_well();
        shared.recent.heard(received, well, done.iter().filter_map(Operation::completion));
        shared.queue.answered(done.iter());
        let nothing_worked = done.is_empty() && again.is_empty();
        shared.counters.retried(later.len());
        self.put_back(again, Next::Again);
        self.put_back(later, Next::Later);
        let Some((why, reopen)) = replies.trouble else {
            self.failures = 0;
            self.is_up(connection);
            return true;
        };
        if reopen {
            self.shaken(&why).await;
            return false;
        }
        self.note(&why);
        self.proven = !nothing_worked;
        true
    }

    /// Sends the commands and waits for the replies. Meanwhile it answers the operations whose own deadline passes.
    async fn exchange(
        &self,
        connection: &mut Connection,
        commands: Vec<Cmd>,
        batch: &mut [Operation],
    ) -> Result<Vec<Reply>, String> {
        let mut exchange = std::pin::pin!(connection.run(&self.shared.settings, commands));
        loop {
            let now = Instant::now();
            let open = batch.iter().filter(|operation| !operation.is_resolution());
            let next = open.map(|operation| operation.until).filter(|until| *until > now).min();
            tokio::select! {
                biased;
                replies = &mut exchange => return replies,
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
            let now = Instant::now();
            for operation in batch.iter_mut().filter(|op| !op.is_resolution() && op.is_over(now)) {
                self.shared.fail_over_due(std::slice::from_mut(operation));
            }
        }
    }

    /// Operations that are to be sent again go to the front, or aside until later, but those whose time has come.
    fn put_back(&self, operations: Vec<Operation>, when: Next) {
        if operations.is_empty() {
            return;
        }
        let now = Instant::now();
        let (mut over, open): (Vec<_>, Vec<_>) = operations.into_iter().partition(|op| op.is_over(now));
        self.shared.fail_over_due(&mut over);
        if when == Next::Later {
            self.shared.queue.push_later(open);
        } else {
            self.shared.queue.push_back_again(open.into_iter());
        }
        self.shared.queue.answered(over.iter());
    }

    /// Keeps the reason for the errors of those who wait.
    fn note(&self, why: &str) {
        self.shared.availability.because(&self.shared.settings.redact(why.to_owned()));
    }

    /// It works, as far as its connection reaches.
    fn is_up(&mut self, connection: &Connection) {
        match connection.lacks() {
            None => self.is_now(Health::Well, ""),
            Some(why) => {
                self.note(why);
                self.is_now(Health::Impaired, why);
            }
        }
    }

    fn is_now(&mut self, health: Health, why: &str) {
        if health == self.health {
            return;
        }
        self.health = health;
        let (redis, why) = (&self.shared.settings.target, self.shared.settings.redact(why.to_owned()));
        match (self.shared.availability.set(self.number, health), health) {
            (Change::StoreDown, _) => tracing::warn!(%redis, error = why, "redis is down"),
            (Change::StoreUp, Health::Well) => tracing::info!(%redis, "redis is up again"),
            (Change::StoreUp, _) => tracing::warn!(%redis, error = why, "a part of redis is up again"),
            (Change::Pipeline, Health::Impaired) => {
                tracing::warn!(%redis, error = why, "a part of redis cannot be used");
            }
            (Change::Pipeline, Health::Down) => {
                tracing::warn!(%redis, error = why, "one of the connections to redis is down");
            }
            (Change::Pipeline, Health::Well) => tracing::debug!(%redis, "a connection to redis works"),
        }
    }

    /// It does not work: waits before the next try.
    async fn failed(&mut self, why: &str) {
        self.is_now(Health::Down, why);
        self.shaken(why).await;
    }

    /// It has to prove that it works before anything else is sent. The first time in a row that happens at once.
    async fn shaken(&mut self, why: &str) {
        self.note(why);
        self.proven = false;
        if self.failures > 0 {
            let longest = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(8)).min(LONGEST_BACKOFF);
            sleep(longest.mul_f64(0.5 + random() / 2.0)).await;
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Opens a connection, or waits a little after a failure.
    async fn reconnect(&mut self) {
        // It would replace a connection that is gone.
        self.opening = JoinSet::new();
        match open(self.shared.clone(), self.opener.clone(), self.runs.clone()).await {
            Ok((connection, runs)) => {
                if !std::mem::take(&mut self.fresh) {
                    self.shared.counters.reconnected();
                }
                self.runs = runs;
                self.connection = Some(connection);
            }
            Err(why) => self.failed(&why).await,
        }
    }

    /// Has another connection opened for one that lacks a part of the Cluster, at most once a second.
    fn replace_if_lacking(&mut self, connection: &Connection) {
        if connection.lacks().is_none() || !self.opening.is_empty() {
            return;
        }
        let start = self.not_before.max(Instant::now());
        self.not_before = start + LONGEST_BACKOFF;
        let opening = open(self.shared.clone(), self.opener.clone(), self.runs.clone());
        self.opening.spawn(async move {
            sleep_until(start).await;
            opening.await
        });
    }

    fn adopt(
        &mut self,
        opened: Result<Result<(Connection, Runs), String>, JoinError>,
        connection: &mut Connection,
    ) {
        match opened {
            Ok(Ok((new, runs))) => {
                self.shared.counters.reconnected();
                self.runs = runs;
                *connection = new;
                self.is_up(connection);
            }
            Ok(Err(why)) => self.note(&why),
            Err(error) => self.note(&error.to_string()),
        }
    }
}

/// Opens a connection and records on it what another run of the server may lack. Nothing else is sent before that.
///
/// # Errors
/// In words.
async fn open(
    shared: Arc<Shared>,
    opener: Arc<Mutex<Opener>>,
    known: Runs,
) -> Result<(Connection, Runs), String> {
    let mut opener = opener.lock().await;
    let connected = greeting::connect(&mut opener, &shared.settings, &shared.clock).await;
    let (mut connection, greeting) = connected.map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    })?;
    shared.warn_of_eviction(&greeting);
    if !greeting.runs.is_subset(&known) {
        record_again(&shared, &mut connection).await?;
    }
    Ok((connection, greeting.runs))
}

async fn record_again(shared: &Shared, connection: &mut Connection) -> Result<(), String> {
    let mut commands = shared.recent.again(Instant::now(), &shared.prefix);
    let count = commands.len();
    while !commands.is_empty() {
        let part = commands.split_off(commands.len().saturating_sub(BATCH));
        shared.counters.sent(part.len());
        for reply in connection.run(&shared.settings, part).await? {
            match reply {
                // When the node is there again, so is its run, and all of this happens again.
                Ok(_) | Err(Trouble::Missing(_)) => {}
                Err(trouble) => return Err(shared.settings.redact(trouble.to_string())),
            }
        }
    }
    if count > 0 {
        shared.counters.reasserted(count);
        tracing::info!(redis = %shared.settings.target, count, "recent completions are recorded again");
    }
    Ok(())
}

/// A number from 0 to 1 without a dependency on a generator: for jitter it is good enough.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}
