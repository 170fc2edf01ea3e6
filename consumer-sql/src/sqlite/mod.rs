//! The dedup store in an SQLite file.

mod driver;
mod records;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution,
    Resolved, StoreError,
};
use sqlx::{
    ConnectOptions, Connection, Sqlite, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};

use crate::{SqlError, Tables, migrate};
use driver::{Answer, Availability, Driver, Job};

/// Keeps the state of idempotency keys in an SQLite file. Clones share one connection.
///
/// Whatever waits is done in one transaction, which is on the disk before anything of it is answered (write-ahead log,
/// `synchronous=FULL`): a process that dies loses nothing that it was told. Several processes of one machine may share the
/// file; SQLite lets one write at a time, so throughput does not grow with them. A file on a network drive is not safe.
///
/// Expired keys are deleted in small portions as new ones come. The clock is that of the machine when the store was
/// opened, moved on by the monotonic clock: a clock that is set has no effect on leases until the process starts anew.
///
/// While the file cannot be written (the disk is full, another process holds it for longer than
/// [`busy_timeout`](SqliteStoreBuilder::busy_timeout)), claims fail, what has happened is kept here and recorded as soon as
/// that is possible, and the source is paused.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("orders.db");
/// use consumer_core::DedupLayer;
/// use consumer_sql::SqliteStore;
///
/// let store = SqliteStore::open(format!("sqlite:{}", file.display())).await?;
/// let dedup = DedupLayer::new(store, "order-mails");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    jobs: mpsc::UnboundedSender<Job>,
    availability: Arc<Availability>,
}

/// Options of a [`SqliteStore`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteStoreBuilder {
    file: Result<PathBuf, String>,
    busy_timeout: Duration,
}

impl SqliteStore {
    /// Opens a file with the defaults: `sqlite:orders.db`, or an absolute path behind `sqlite:`. It is created if it is
    /// missing, and so are its tables.
    ///
    /// # Errors
    /// As [`SqliteStoreBuilder::open`].
    ///
    /// # Cancel safety
    /// Dropped, the file may be created or not.
    pub async fn open(url: impl AsRef<str>) -> Result<Self, SqlError> {
        Self::builder(url).open().await
    }

    /// Starts from a URL: `sqlite:orders.db`.
    pub fn builder(url: impl AsRef<str>) -> SqliteStoreBuilder {
        let file = match url.as_ref().strip_prefix("sqlite:").map(|path| path.trim_start_matches("//")) {
            Some("" | ":memory:") => {
                Err("`sqlite:` needs a file, as in sqlite:orders.db; for a store in memory take `memory:`"
                    .to_owned())
            }
            Some(path) => Ok(path.into()),
            None => Err("this is no URL of an SQLite file: sqlite:orders.db".to_owned()),
        };
        SqliteStoreBuilder { file, busy_timeout: Duration::from_secs(5) }
    }
}

impl SqliteStoreBuilder {
    /// How long another process may hold the file before that counts as an outage. Default: 5 s.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
        self
    }

    /// Checks what can be checked without touching the file.
    ///
    /// # Errors
    /// With `is_config()` when the URL is wrong.
    pub fn check(&self) -> Result<(), SqlError> {
        self.file.as_ref().map(drop).map_err(|error| SqlError::config(error.clone()))
    }

    /// Opens the file, creates or migrates its tables, and starts the task that owns it. Needs a tokio runtime.
    ///
    /// # Errors
    /// With `is_config()` when the URL is wrong; else when the file cannot be opened, is no database, was written by a
    /// later version, or cannot be written. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the file may be created or not.
    pub async fn open(self) -> Result<SqliteStore, SqlError> {
        let file = self.file.map_err(SqlError::config)?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(self.busy_timeout)
            .disable_statement_logging();
        let at = |doing: &str| format!("the dedup store in {} {doing}", file.display());
        let mut connection = SqliteConnection::connect_with(&options)
            .await
            .map_err(|error| SqlError::driver(at("cannot be opened"), error))?;
        migrate::<Sqlite>(&mut connection, &Tables::new()).await?;
        let (jobs, received) = mpsc::unbounded_channel();
        let availability = Arc::<Availability>::default();
        let driver = Driver::new(connection, options, at(""), availability.clone());
        tokio::spawn(driver.run(received));
        Ok(SqliteStore { jobs, availability })
    }
}

impl SqliteStore {
    /// Enqueues by the call; the task goes on whatever becomes of the future.
    fn ask<T: Send + 'static, J: FnOnce(Answer<T>) -> Job>(
        &self,
        job: J,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'static + use<T, J> {
        let (answer, answered) = oneshot::channel();
        // If the task is gone, so is the sender of the answer.
        let _ = self.jobs.send(job(answer));
        async move {
            let gone = || StoreError::new("the task of the dedup store has ended with its runtime");
            answered.await.unwrap_or_else(|_| Err(gone()))
        }
    }
}

impl DedupStore for SqliteStore {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.ask(move |answer| Job::Claim(request, answer))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        self.ask(move |answer| Job::Resolve(claim, resolution, lifetime, answer))
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.ask(move |answer| Job::Renew(requests, answer))
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        self.ask(move |answer| Job::Park(request, answer))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.ask(Job::Flush)
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.availability.poll_up(cx)
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}
