//! One worker of a relay: own a shard, publish what is in it, settle, give it up.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use consumer_core::Publisher;
use sqlx::Pool;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Config,
    meter::Meter,
    publish::{Batch, publish},
    session::{Session, Settled},
};
use crate::{Database, SqlError};

/// Batches of a shard in a row, while others may wait for it.
const TURNS: u32 = 16;
const SILENCE: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Between two batches of which the broker has taken nothing.
const AWAY_WAIT: Duration = Duration::from_secs(1);

/// What the workers of a relay share.
pub(super) struct Shared<DB: Database, P> {
    pub(super) pool: Pool<DB>,
    pub(super) publisher: P,
    pub(super) config: Config,
    pub(super) counts: Counts,
    pub(super) meter: Meter,
    pub(super) stop: watch::Receiver<bool>,
    /// Changes when there may be something new.
    pub(super) wake: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) published: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) quarantined: AtomicU64,
}

pub(super) struct Worker<DB: Database, P> {
    shared: Arc<Shared<DB, P>>,
    session: Option<DB::Session>,
    stop: watch::Receiver<bool>,
    wake: watch::Receiver<u64>,
    /// The shard to begin the search with.
    next: u16,
    wait: Duration,
}

impl<DB: Database, P: Publisher> Worker<DB, P> {
    pub(super) fn new(shared: Arc<Shared<DB, P>>, number: u16) -> Self {
        let (stop, wake) = (shared.stop.clone(), shared.wake.subscribe());
        Self { shared, session: None, stop, wake, next: number * 7, wait: FIRST_WAIT }
    }

    /// Until the stop.
    pub(super) async fn run(mut self) {
        while !*self.stop.borrow() {
            if let Err(error) = self.round().await {
                let error = SqlError::driver("the outbox cannot be worked on", error);
                let error = consumer_core::Failure::permanent(error).cause();
                // What was confirmed and not settled is published again: who has the shard now, nobody knows.
                tracing::warn!(%error, wait = ?self.wait, "the relay has lost its database; trying again");
                self.session = None;
                self.rest().await;
            }
        }
    }

    async fn session(&mut self) -> Result<&mut DB::Session, sqlx::Error> {
        if self.session.is_none() {
            let Shared { pool, config, .. } = &*self.shared;
            self.session = Some(within(DB::Session::open(pool, &config.tables)).await?);
        }
        self.session.as_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    /// One shard, or the wait for something new.
    async fn round(&mut self) -> Result<(), sqlx::Error> {
        self.wake.mark_unchanged();
        let first = self.next;
        let Some(shard) = within(self.session().await?.own(first)).await? else {
            let poll = self.shared.config.poll;
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => {}
                _ = timeout(poll, self.wake.changed()) => {}
            }
            return Ok(());
        };
        self.next = shard + 1;
        for _ in 0..TURNS {
            if *self.stop.borrow() || !self.batch(shard).await? {
                break;
            }
        }
        within(self.session().await?.disown(shard)).await
    }

    /// Whether there may be more.
    async fn batch(&mut self, shard: u16) -> Result<bool, sqlx::Error> {
        let limit = self.shared.config.limit;
        let Some(rows) = within(self.session().await?.take(shard, limit)).await? else { return Ok(false) };
        let drain = self.shared.config.drain;
        let mut stop = self.stop.clone();
        let enough = async move {
            // A sender that is gone is a stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
            sleep(drain).await;
        };
        let shared = self.shared.clone();
        let Batch { settled, away } = publish(&shared.publisher, rows, shared.config.policy, enough).await;
        self.count(&settled);
        let (sent, keep) = (settled.published.len(), shared.config.history.is_some());
        if !settled.is_empty() {
            let Some(session) = &mut self.session else { return Err(sqlx::Error::WorkerCrashed) };
            // In the order of the portions: those behind a row are free before it is gone.
            while within(session.release(&settled)).await? > 0 {}
            within(session.settle(&settled, keep)).await?;
        }
        if sent > 0 || away.is_none() {
            self.wait = FIRST_WAIT;
        }
        if let Some(error) = away {
            tracing::warn!(error, wait = ?self.wait, "the broker takes no messages; they wait in the outbox");
            // Where others are taken, it is one queue that takes none.
            if sent == 0 {
                self.wait = self.wait.min(AWAY_WAIT);
                self.rest().await;
            }
        }
        Ok(true)
    }

    async fn rest(&mut self) {
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => {}
            () = sleep(self.wait) => {}
        }
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn count(&self, settled: &Settled) {
        let Shared { counts, meter, .. } = &*self.shared;
        let add = |count: &AtomicU64, more: usize| count.fetch_add(more as u64, Ordering::Relaxed);
        add(&counts.published, settled.published.len());
        let failed = settled.failed.iter().filter(|row| row.is_refused).count();
        add(&counts.failed, failed);
        let quarantined = settled.failed.iter().filter(|row| row.wait.is_none());
        for row in quarantined.clone() {
            tracing::error!(
                row = row.id,
                attempts = row.attempts,
                error = row.error,
                "row is quarantined, and its key held"
            );
        }
        let quarantined = quarantined.count();
        add(&counts.quarantined, quarantined);
        meter.settled(settled.published.len(), failed, quarantined);
    }
}

/// A database that is silent for so long is lost, also where the network says nothing.
pub(super) async fn within<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let silent =
        || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer from the database"));
    timeout(SILENCE, asked).await.unwrap_or_else(|_| Err(silent()))
}
