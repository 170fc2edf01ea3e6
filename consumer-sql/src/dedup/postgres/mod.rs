//! The dedup store in PostgreSQL.

mod backend;

use std::{fmt, str::FromStr, time::Duration};

use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres, postgres::PgConnectOptions};

use super::{Handle, dedup_store, driver::Backend, jobs::Keys};
use crate::{SqlError, Tables, migrate};
use backend::{PostgresBackend, Server, within};

/// Keeps the state of idempotency keys in PostgreSQL, version 13 or newer. Clones share one connection.
///
/// Whatever waits is done at once, with one statement that reads and one that writes, and nothing of it is answered before
/// it is committed: with the server's defaults (`fsync` and `synchronous_commit` on) neither a process nor the server loses
/// what was answered when it dies. Any number of processes share the tables. None of them holds locks: who finds that a row
/// was written by another one meanwhile decides anew.
///
/// Leases and lifetimes are measured by the server's clock. A clock that is set back by minutes, or a standby of which the
/// clock is behind, prolongs them; one that is set ahead ends them too early. Expired keys are deleted in small portions as
/// new ones come.
///
/// While the server cannot be reached, claims fail, what has happened is kept here and recorded as soon as that is possible,
/// and the source is paused. A failover to a standby that had not received the last transactions loses these: replicate
/// synchronously if that must not be.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use consumer_core::DedupLayer;
/// use consumer_sql::PostgresStore;
///
/// let store = PostgresStore::connect("postgres://orders@db.internal/shop").await?;
/// let dedup = DedupLayer::new(store, "order-mails");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore(Handle);

dedup_store!(PostgresStore);

/// Options of a [`PostgresStore`].
///
/// | option | default |
/// |---|---|
/// | [`tables`](Self::tables) | `consumer_dedup` and `consumer_parked` |
/// | [`migrate`](Self::migrate) | true |
/// | [`response_timeout`](Self::response_timeout) | 5 s |
#[derive(Clone)]
#[must_use]
pub struct PostgresStoreBuilder {
    server: Result<Server, String>,
    tables: Tables,
    migrate: bool,
    response_timeout: Duration,
}

impl PostgresStore {
    /// Connects with the defaults: `postgres://user:password@host:port/database`. The tables are created if they are
    /// missing.
    ///
    /// # Errors
    /// As [`PostgresStoreBuilder::connect`].
    ///
    /// # Cancel safety
    /// As [`PostgresStoreBuilder::connect`].
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, SqlError> {
        Self::builder(url).connect().await
    }

    /// Starts from a URL: `postgres://user:password@host:port/database`, with libpq's parameters behind a `?`, of which
    /// `sslmode` and `sslrootcert` need the feature `tls`. What it leaves out is taken from libpq's environment variables
    /// (`PGPASSWORD` and so on) and `~/.pgpass`.
    pub fn builder(url: impl AsRef<str>) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(options(url.as_ref()).map(|options| Server::Options(Box::new(options))))
    }

    /// Starts from a pool. The store connects as the pool does, with the options that it has at the time, but by a
    /// connection of its own: that counts in no limit of the pool, waits for nobody who uses it, and stays when it is
    /// closed.
    pub fn with_pool(pool: &PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(Ok(Server::Pool(pool.clone())))
    }
}

fn options(url: &str) -> Result<PgConnectOptions, String> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("this is no URL of a PostgreSQL database: postgres://user@host:port/database".to_owned());
    }
    PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(error) => {
            format!("the URL of the PostgreSQL database cannot be read: {error}")
        }
        error => format!("the URL of the PostgreSQL database cannot be used: {error}"),
    })
}

impl PostgresStoreBuilder {
    fn new(server: Result<Server, String>) -> Self {
        Self { server, tables: Tables::new(), migrate: true, response_timeout: Duration::from_secs(5) }
    }

    /// Where the tables are. All processes that share ids need the same. Default: as [`Tables::new`] says.
    pub fn tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
        self
    }

    /// Whether [`connect`](Self::connect) creates or migrates the tables. Without that, somebody else runs
    /// [`migrate`](crate::migrate) before, and the user needs no more than SELECT, INSERT, UPDATE and DELETE. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How long the server may take to log in, and for each statement, before that counts as an outage. Default: 5 s.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Checks what can be checked without the network.
    ///
    /// # Errors
    /// With `is_config()` when the URL is wrong.
    pub fn check(&self) -> Result<(), SqlError> {
        self.server.as_ref().map(drop).map_err(|error| SqlError::config(error.clone()))
    }

    /// Connects, creates or migrates the tables, and starts the task that owns the connection. Needs a tokio runtime.
    ///
    /// # Errors
    /// With `is_config()` when the URL is wrong; `is_unavailable()` when the server cannot be reached; `is_denied()` when it
    /// refuses the user, or the user may not do what is needed; `is_schema()` when there is no such database, when the
    /// tables are missing (without [`migrate`](Self::migrate)) or were made by a later version. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the tables may be created or not.
    pub async fn connect(self) -> Result<PostgresStore, SqlError> {
        let server = self.server.map_err(SqlError::config)?;
        let server = match server {
            Server::Options(options) => Server::Options(Box::new(options.disable_statement_logging())),
            pool @ Server::Pool(_) => pool,
        };
        let options = server.options();
        let name = format!("the dedup store in PostgreSQL at {}", place(&options));
        let limit = self.response_timeout;
        let failed = |error| SqlError::driver(format_args!("{name} cannot be opened"), error);
        let mut connection = within(limit, PgConnection::connect_with(&options)).await.map_err(failed)?;
        if self.migrate {
            migrate::<Postgres>(&mut connection, &self.tables).await?;
            // That may have changed what statements mean that the connection remembers.
            connection.clear_cached_statements().await.map_err(failed)?;
        }
        let mut backend = PostgresBackend::new(server, connection, limit, &self.tables);
        // Tables that are missing are found now and not at the first claim.
        backend.load(&Keys::one()).await.map_err(failed)?;
        Ok(PostgresStore(Handle::start(backend, format!("{name} cannot be used"))))
    }
}

/// Host, port and database.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

/// Without the password.
impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStoreBuilder")
            .field("server", &self.server.as_ref().map(|server| place(&server.options())))
            .field("tables", &self.tables)
            .field("migrate", &self.migrate)
            .field("response_timeout", &self.response_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_without_the_network_and_no_password_is_shown() {
        for (url, word) in [
            ("redis://ann:s3cret@h/x", "postgres://"),
            ("postgres://ann:s3cret@h:port/x", "port"),
            ("postgres://ann:s3cret@h/x?sslmode=sometimes", "sometimes"),
        ] {
            let error = PostgresStore::builder(url).check().unwrap_err();
            assert!(error.is_config() && error.to_string().contains(word), "{error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        let builder = PostgresStore::builder("postgresql://ann:s3cret@h/x");
        builder.check().unwrap();
        let shown = format!("{builder:?}");
        assert!(shown.contains("h:5432/x") && !shown.contains("s3cret"), "{shown}");
    }
}
