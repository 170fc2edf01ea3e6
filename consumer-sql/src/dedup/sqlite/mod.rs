//! The dedup store in an SQLite file.

mod backend;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use sqlx::{
    ConnectOptions, Connection, Sqlite, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{Handle, dedup_store};
use crate::{SqlError, Tables, migrate};
use backend::SqliteBackend;

/// Keeps the state of idempotency keys in an SQLite file. Clones share one connection.
///
/// Whatever waits is done in one transaction, which is on the disk before anything of it is answered (write-ahead log,
/// `synchronous=FULL`): a process that dies loses nothing that it was told. Several processes of one machine may share the
/// file; SQLite lets one write at a time, so throughput does not grow with them. A file on a network drive is not safe.
///
/// Expired keys are deleted in small portions as new ones come. The clock is that of the machine when the store was
/// opened, moved on by the monotonic clock: a clock that is set has no effect on leases until the process starts anew. **After
/// the clock was set by more than a lease, or the machine was suspended, restart all processes that share the file together**: to
/// one that starts then, what the others hold looks expired, and it takes that over.
///
/// While the file cannot be written (the disk is full, another process holds it for longer than
/// [`busy_timeout`](SqliteStoreBuilder::busy_timeout)), claims fail, what has happened is kept here and recorded as soon as
/// that is possible, and the source is paused. A file that is missing when it has to be opened anew is an outage as well: no
/// empty one takes its place.
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
pub struct SqliteStore(Handle);

dedup_store!(SqliteStore);

/// Options of a [`SqliteStore`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteStoreBuilder {
    file: Result<PathBuf, String>,
    busy_timeout: Duration,
    tables: Tables,
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
            Some(path) if path.starts_with("file:") => {
                Err(format!("{path:?} is no path: the file is named as in sqlite:orders.db, without `file:`"))
            }
            Some(path) => Ok(path.into()),
            None => Err("this is no URL of an SQLite file: sqlite:orders.db".to_owned()),
        };
        SqliteStoreBuilder { file, busy_timeout: Duration::from_secs(5), tables: Tables::new() }
    }
}

impl SqliteStoreBuilder {
    /// How long another process may hold the file before that counts as an outage. Default: 5 s.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
        self
    }

    /// Where in the file the tables are. Default: as [`Tables::new`] says.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
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
        migrate::<Sqlite>(&mut connection, &self.tables).await?;
        connection.close().await.map_err(|error| SqlError::driver(at("cannot be used"), error))?;
        // From here on a missing file is an outage, and no empty one takes its place.
        let options = options.create_if_missing(false);
        let backend = SqliteBackend::new(options, self.busy_timeout, &self.tables);
        Ok(SqliteStore(Handle::start(backend, at("cannot be used"))))
    }
}
