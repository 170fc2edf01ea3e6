//! Deletes what is older than the retention, in small portions beside the work.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{service::Shared, statements::PORTION};
use crate::{Database, SqlError};

/// So long after one sweep the next begins, while there is work.
const PAUSE: Duration = Duration::from_secs(5);

/// When the next sweep is due; None while one runs.
pub(super) struct Sweeper(Mutex<Option<Instant>>);

impl Sweeper {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }

    fn is_due(&self) -> bool {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if due.is_some_and(|at| at <= Instant::now()) {
            *due = None;
            return true;
        }
        false
    }

    fn done(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PAUSE);
    }
}

impl<DB: Database> Shared<DB> {
    pub(super) fn sweep_if_due(self: &Arc<Self>) {
        if self.sweeper.is_due() {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    async fn sweep_portion(&self) -> Result<u64, SqlError> {
        let swept = async {
            let _turn = self.turn().await;
            let mut connection = self.pool.acquire().await?;
            DB::sweep(&mut connection, &self.sql, self.config.retention).await
        };
        swept.await.map_err(|error| SqlError::driver("old records of the inbox cannot be deleted", error))
    }
}

async fn sweep<DB: Database>(shared: Weak<Shared<DB>>) {
    while let Some(shared) = shared.upgrade() {
        match shared.sweep_portion().await {
            Ok(PORTION) => {}
            Ok(_) => return shared.sweeper.done(),
            Err(error) => {
                tracing::warn!(%error, source = std::error::Error::source(&error), consumer = %shared.config.consumer, "trying again later");
                return shared.sweeper.done();
            }
        }
    }
}
