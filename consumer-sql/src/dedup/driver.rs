//! The task that owns the connection: whatever waits is decided at once, and answered when that is on the disk.
//!
//! A batch is read, decided and written in a few statements, however large it is. Each key stands for itself: when others
//! have written some of the keys meanwhile, the jobs of these are decided anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{
    batch::{Batch, Changes, Loaded},
    jobs::{Job, Keys},
};
use crate::{SqlError, availability::Availability};

/// Jobs in one batch. More would keep other processes from an SQLite file for longer.
pub(super) const BATCH: usize = 512;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Expired rows are looked for so often, unless there are more of them than go at once.
const SWEEP: Duration = Duration::from_secs(1);

/// A database. It connects by itself, and connects anew after an error.
pub(super) trait Backend: Send + 'static {
    /// Reads what there is of these keys, and the time.
    fn load(&mut self, keys: &Keys) -> impl Future<Output = Result<Loaded, sqlx::Error>> + Send;

    /// Comes after each `load`. Gives the keys that somebody else has written since: these are not written. After an error
    /// the rest may be written or not.
    fn write(&mut self, changes: &Changes) -> impl Future<Output = Result<Keys, sqlx::Error>> + Send;

    /// Deletes a portion of what has expired at that time. Whether there may be more of it.
    fn sweep(&mut self, now: u64) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Says good-bye.
    fn close(self) -> impl Future<Output = ()> + Send;
}

pub(super) struct Driver<B> {
    backend: B,
    /// As in "the dedup store in …".
    name: String,
    availability: Arc<Availability>,
    swept: Instant,
    /// In their order; those that an outage has left come first.
    jobs: VecDeque<Job>,
}

impl<B: Backend> Driver<B> {
    pub(super) fn new(backend: B, name: String, availability: Arc<Availability>) -> Self {
        Self { backend, name, availability, swept: Instant::now(), jobs: VecDeque::new() }
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
            match self.turn().await {
                Ok(()) => {
                    self.availability.set(true);
                    wait = FIRST_WAIT;
                }
                Err(error) => {
                    let error = SqlError::driver(&self.name, error);
                    let text = match std::error::Error::source(&error) {
                        Some(source) => format!("{error}: {source}"),
                        None => error.to_string(),
                    };
                    if self.availability.set(false) {
                        tracing::error!(
                            error = text,
                            "cannot write: what has happened is kept and recorded later"
                        );
                    }
                    // However much is kept, what asks is answered.
                    while let Ok(job) = received.try_recv() {
                        self.jobs.push_back(job);
                    }
                    let kept = self.jobs.drain(..).filter_map(|job| job.survives(&text)).collect();
                    self.jobs = kept;
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    // Nobody may come as long as the store is down: it is looked at all the same.
                    if self.jobs.is_empty() && !received.is_closed() {
                        let (answer, _) = oneshot::channel();
                        self.jobs.push_back(Job::Flush(answer));
                    }
                }
            }
        }
        self.backend.close().await;
    }

    /// One batch. After an error its jobs are there as before.
    async fn turn(&mut self) -> Result<(), sqlx::Error> {
        let size = self.jobs.len().min(BATCH);
        let keys = Keys::of(self.jobs.range(..size));
        let loaded = self.backend.load(&keys).await?;
        let now = loaded.now;
        let batch = Batch::new(self.jobs.drain(..size).collect(), loaded);
        let outcome = self.backend.write(&batch.changes).await;
        let (left, outcome) = match outcome {
            Ok(conflicts) => (batch.written(&conflicts), Ok(())),
            Err(error) => (batch.unknown(), Err(error)),
        };
        for job in left.into_iter().rev() {
            self.jobs.push_front(job);
        }
        outcome?;
        if self.swept.elapsed() >= SWEEP && !self.backend.sweep(now).await? {
            self.swept = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
