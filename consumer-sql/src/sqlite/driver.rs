//! The task that owns the connection: whatever waits goes into one transaction, and is answered when that is on the disk.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution, Resolved,
    StoreError,
    protocol::{Operation, Reply, transition},
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::records;

/// Jobs in one transaction. More would keep other processes from the file for longer.
const BATCH: usize = 512;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Expired rows are looked for so often.
const SWEEP: Duration = Duration::from_secs(1);

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Job {
    Claim(ClaimRequest, Answer<ClaimReply>),
    Resolve(Claim, Resolution, Duration, Answer<Resolved>),
    Renew(Vec<RenewRequest>, Answer<Vec<Renewal>>),
    Park(ParkRequest, Answer<ParkReply>),
    Flush(Answer<()>),
}

/// What a job is answered once its transaction is over.
enum Done {
    Claim(ClaimReply),
    Resolve(Resolved),
    Renew(Vec<Renewal>),
    Park(ParkReply),
    Flush,
}

pub(super) struct Driver {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    name: String,
    availability: std::sync::Arc<Availability>,
    clock: Clock,
    swept: Instant,
    /// Before what is new: resolutions whose transaction has failed.
    jobs: VecDeque<Job>,
}

impl Driver {
    pub(super) fn new(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        name: String,
        availability: std::sync::Arc<Availability>,
    ) -> Self {
        let swept = Instant::now();
        let connection = Some(connection);
        Self { connection, options, name, availability, clock: Clock::new(), swept, jobs: VecDeque::new() }
    }

    /// Ends when the last handle is gone and everything is done.
    pub(super) async fn run(mut self, mut received: mpsc::UnboundedReceiver<Job>) {
        let mut wait = FIRST_WAIT;
        loop {
            if self.jobs.is_empty() {
                let Some(job) = received.recv().await else { break };
                self.jobs.push_back(job);
            }
            while self.jobs.len() < BATCH
                && let Ok(job) = received.try_recv()
            {
                self.jobs.push_back(job);
            }
            match self.work().await {
                Ok(()) => {
                    self.availability.set(true);
                    wait = FIRST_WAIT;
                }
                Err(error) => {
                    if self.availability.set(false) {
                        tracing::error!(%error, store = self.name, "cannot write: what has happened is kept and recorded later");
                    }
                    // However much is kept, what asks is answered.
                    while let Ok(job) = received.try_recv() {
                        self.jobs.push_back(job);
                    }
                    self.fail(&error);
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    // Nobody may come as long as the store is down: it is looked at all the same.
                    if self.jobs.is_empty() {
                        let (answer, _) = oneshot::channel();
                        self.jobs.push_back(Job::Flush(answer));
                    }
                }
            }
        }
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    /// Everything but resolutions and flushes is told that it may not have happened.
    fn fail(&mut self, error: &sqlx::Error) {
        let told = |error: &sqlx::Error| StoreError::new(format!("{}: {error}", self.name));
        let mut kept = VecDeque::new();
        for job in std::mem::take(&mut self.jobs) {
            match job {
                Job::Claim(_, answer) => drop(answer.send(Err(told(error)))),
                Job::Renew(_, answer) => drop(answer.send(Err(told(error)))),
                Job::Park(_, answer) => drop(answer.send(Err(told(error)))),
                job @ (Job::Resolve(..) | Job::Flush(_)) => kept.push_back(job),
            }
        }
        self.jobs = kept;
    }

    /// One transaction. After an error nothing of it has happened, as far as the driver knows.
    async fn work(&mut self) -> Result<(), sqlx::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        // Without the lock from the start, two processes could both read and then one of them not write.
        let now = self.clock.millis();
        let sweep = self.swept.elapsed() >= SWEEP;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut done = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            done.push(apply(&mut transaction, job, now).await?);
        }
        if sweep {
            records::sweep(&mut transaction, now).await?;
        }
        transaction.commit().await?;
        if sweep {
            self.swept = Instant::now();
        }
        self.connection = Some(connection);
        for (job, done) in self.jobs.drain(..).zip(done) {
            answer(job, done);
        }
        Ok(())
    }
}

async fn apply(connection: &mut SqliteConnection, job: &Job, now: u64) -> Result<Done, sqlx::Error> {
    Ok(match job {
        Job::Claim(request, _) => {
            let reply = step(connection, request.key.hash(), &Operation::Claim(request), now).await?;
            let Reply::Claim(reply) = reply else { return Err(odd()) };
            Done::Claim(reply)
        }
        Job::Resolve(claim, resolution, lifetime, _) => {
            let operation = Operation::Resolve(claim, *resolution, *lifetime);
            let Reply::Resolve(reply) = step(connection, claim.key.hash(), &operation, now).await? else {
                return Err(odd());
            };
            Done::Resolve(reply)
        }
        Job::Renew(requests, _) => {
            let mut renewals = Vec::with_capacity(requests.len());
            for request in requests {
                let operation = Operation::Renew(request);
                match step(connection, request.claim.key.hash(), &operation, now).await? {
                    Reply::Renew(renewal) => renewals.push(renewal),
                    _ => return Err(odd()),
                }
            }
            Done::Renew(renewals)
        }
        Job::Park(request, _) => {
            let hash = request.key.hash();
            let mut parked = records::parked(connection, hash).await?;
            let before = parked.clone();
            let reply = parked.apply(request, now);
            if parked != before {
                records::write_parked(connection, hash, &parked).await?;
            }
            Done::Park(reply)
        }
        Job::Flush(_) => Done::Flush,
    })
}

/// The protocol is a pure function; all there is to do is to read what it needs and write what it says.
async fn step(
    connection: &mut SqliteConnection,
    hash: u128,
    operation: &Operation<'_>,
    now: u64,
) -> Result<Reply, sqlx::Error> {
    let state = records::state(connection, hash, now).await?;
    let (reply, write) = transition(&state, operation, now);
    if let Some(write) = write {
        records::write(connection, hash, &write, now).await?;
    }
    Ok(reply)
}

fn odd() -> sqlx::Error {
    sqlx::Error::Protocol("the protocol answers another question".to_owned())
}

fn answer(job: Job, done: Done) {
    // Whoever dropped its future does not want to know.
    match (job, done) {
        (Job::Claim(_, answer), Done::Claim(reply)) => drop(answer.send(Ok(reply))),
        (Job::Resolve(.., answer), Done::Resolve(reply)) => drop(answer.send(Ok(reply))),
        (Job::Renew(_, answer), Done::Renew(reply)) => drop(answer.send(Ok(reply))),
        (Job::Park(_, answer), Done::Park(reply)) => drop(answer.send(Ok(reply))),
        (Job::Flush(answer), _) => drop(answer.send(Ok(()))),
        _ => {}
    }
}

/// The machine's clock when the store was opened, moved on by the monotonic one.
struct Clock {
    opened: Instant,
    at: u64,
}

impl Clock {
    fn new() -> Self {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { opened: Instant::now(), at: u64::try_from(at.as_millis()).unwrap_or(u64::MAX) }
    }

    fn millis(&self) -> u64 {
        let passed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.saturating_add(passed)
    }
}

/// Whether the file can be written, as far as is known.
#[derive(Default)]
pub(super) struct Availability {
    down: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Availability {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that is news.
    fn set(&self, up: bool) -> bool {
        let mut waiting = self.waiting();
        let was_up = !self.down.swap(!up, Ordering::AcqRel);
        if up {
            std::mem::take(&mut *waiting).into_iter().for_each(Waker::wake);
        }
        was_up != up
    }

    pub(super) fn poll_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !self.down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
