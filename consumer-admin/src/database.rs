//! Databases by URL.

use std::{fmt, future::Future, str::FromStr, time::Duration};

use consumer_core::DynPublisher;
use consumer_sql::{
    InboxAdmin, InboxPurge, InboxRecord, InboxStats, OutboxAdmin, OutboxChange, OutboxFilter, OutboxMessage,
    OutboxPurge, OutboxRow, OutboxStats, Relay, RelayReport, Tables, migrate, migrations_sql,
};
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::AdminError;

/// How long another process may have an SQLite file.
const BUSY: Duration = Duration::from_secs(30);
const KNOWN: &str = "known are postgres://user:password@host:port/database and sqlite:file";

/// A PostgreSQL or an SQLite file, with the tables of `consumer-sql`. Each call connects anew.
#[derive(Clone)]
pub struct Database {
    kind: Kind,
    tables: Tables,
}

#[derive(Clone)]
enum Kind {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

enum Connected {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// How a relay works; what is none is as [`Relay`] has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayOptions {
    /// [`Relay::workers`]
    pub workers: Option<u16>,
    /// [`Relay::batch`]
    pub batch: Option<u32>,
    /// [`Relay::history`]
    pub history: Option<Duration>,
    /// [`Relay::max_attempts`]
    pub max_attempts: Option<u32>,
    /// [`Relay::until_empty`]
    pub until_empty: bool,
}

/// The same call on whichever database it is.
macro_rules! on {
    ($self:ident, $admin:ident.$($call:tt)*) => {
        Ok(match $self.connect().await? {
            Connected::Postgres(pool) => $admin::new(pool).tables($self.tables.clone()).$($call)*.await,
            Connected::Sqlite(pool) => $admin::new(pool).tables($self.tables.clone()).$($call)*.await,
        }?)
    };
}

impl Database {
    /// `postgres://user:password@host:port/database` with the parameters of `libpq` (`sslmode=verify-full` and so on), or
    /// `sqlite:file`. The tables are where [`Tables`] says, with the schema and the prefix given here.
    ///
    /// # Errors
    /// With `is_usage()` when the URL is of no known kind, or cannot be used, or a name cannot. No error repeats the URL.
    pub fn from_url(url: &str, schema: Option<&str>, prefix: Option<&str>) -> Result<Self, AdminError> {
        let wrong = || AdminError::usage(format!("the database's URL cannot be used: {KNOWN}"));
        let kind = match url.split_once(':') {
            // With anything else behind the colon the driver takes all of it for the name of a database, which is shown: a
            // password as well.
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                let options = PgConnectOptions::from_str(url).map_err(|error| wrong().with_source(error))?;
                Kind::Postgres(Box::new(options.disable_statement_logging()))
            }
            // What is in memory is gone with this process, and nobody else's.
            Some(("sqlite", _)) if ["sqlite:", "sqlite://", "sqlite::memory:"].contains(&url) => {
                return Err(AdminError::usage("`sqlite:` needs a file, as in sqlite:orders.db"));
            }
            Some(("sqlite", _)) => {
                let options =
                    SqliteConnectOptions::from_str(url).map_err(|error| wrong().with_source(error))?;
                Kind::Sqlite(Box::new(options.busy_timeout(BUSY).disable_statement_logging()))
            }
            _ => return Err(AdminError::usage(format!("this is no URL of a database: {KNOWN}"))),
        };
        let mut tables = Tables::new();
        if let Some(schema) = schema {
            tables = tables.in_schema(schema)?;
        }
        if let Some(prefix) = prefix {
            tables = tables.with_prefix(prefix)?;
        }
        let database = Self { kind, tables };
        database.migrations()?;
        Ok(database)
    }

    /// Once without the pool, which would go on trying for half a minute.
    async fn connect(&self) -> Result<Connected, AdminError> {
        match &self.kind {
            Kind::Postgres(options) => {
                let connection = PgConnection::connect_with(options).await.map_err(|e| self.away(e))?;
                let _ = connection.close().await;
                Ok(Connected::Postgres(PgPoolOptions::new().connect_lazy_with((**options).clone())))
            }
            Kind::Sqlite(options) => {
                let connection = SqliteConnection::connect_with(options).await.map_err(|e| self.away(e))?;
                let _ = connection.close().await;
                Ok(Connected::Sqlite(SqlitePoolOptions::new().connect_lazy_with((**options).clone())))
            }
        }
    }

    fn away(&self, error: sqlx::Error) -> AdminError {
        AdminError::new(format!("{self:?} cannot be opened")).with_source(error)
    }

    /// Creates the tables, or brings them to this version; an SQLite file is created as well.
    ///
    /// # Errors
    /// As [`migrate`] says, and when the database cannot be reached. Trying again is safe.
    ///
    /// # Cancel safety
    /// Each migration is done wholly or not at all.
    pub async fn migrate(&self) -> Result<(), AdminError> {
        match &self.kind {
            Kind::Postgres(options) => {
                let mut connection = PgConnection::connect_with(options).await.map_err(|e| self.away(e))?;
                migrate::<Postgres>(&mut connection, &self.tables).await?;
            }
            Kind::Sqlite(options) => {
                let options = (**options).clone().create_if_missing(true);
                let mut connection =
                    SqliteConnection::connect_with(&options).await.map_err(|e| self.away(e))?;
                migrate::<Sqlite>(&mut connection, &self.tables).await?;
            }
        }
        Ok(())
    }

    /// The statements that [`migrate`](Self::migrate) would run on a new database: version, title, text.
    ///
    /// # Errors
    /// With `is_usage()` when a schema is asked for and the database has none.
    pub fn migrations(&self) -> Result<Vec<(i64, &'static str, String)>, AdminError> {
        Ok(match self.kind {
            Kind::Postgres(_) => migrations_sql::<Postgres>(&self.tables),
            Kind::Sqlite(_) => migrations_sql::<Sqlite>(&self.tables),
        }?)
    }

    /// Publishes what is in the outbox, until `shutdown` resolves: see [`Relay::run`].
    ///
    /// # Errors
    /// When the database cannot be reached at the start, or its tables cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future is a crash: what was on its way is published again.
    pub async fn relay(
        &self,
        publisher: DynPublisher,
        how: RelayOptions,
        shutdown: impl Future<Output = ()>,
    ) -> Result<RelayReport, AdminError> {
        Ok(match self.connect().await? {
            Connected::Postgres(pool) => self.with(Relay::new(pool, publisher), how).run(shutdown).await,
            Connected::Sqlite(pool) => self.with(Relay::new(pool, publisher), how).run(shutdown).await,
        }?)
    }

    fn with<DB: consumer_sql::Database>(
        &self,
        mut relay: Relay<DB, DynPublisher>,
        how: RelayOptions,
    ) -> Relay<DB, DynPublisher> {
        relay = relay.tables(self.tables.clone());
        if let Some(workers) = how.workers {
            relay = relay.workers(workers);
        }
        if let Some(rows) = how.batch {
            relay = relay.batch(rows);
        }
        if let Some(keep) = how.history {
            relay = relay.history(keep);
        }
        if let Some(attempts) = how.max_attempts {
            relay = relay.max_attempts(attempts);
        }
        if how.until_empty { relay.until_empty() } else { relay }
    }

    /// See [`OutboxAdmin::stats`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn outbox_stats(&self) -> Result<OutboxStats, AdminError> {
        on!(self, OutboxAdmin.stats())
    }

    /// See [`OutboxAdmin::list`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn outbox_list(&self, filter: &OutboxFilter, limit: u64) -> Result<Vec<OutboxRow>, AdminError> {
        on!(self, OutboxAdmin.list(filter, limit))
    }

    /// See [`OutboxAdmin::show`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn outbox_show(&self, id: i64) -> Result<Option<OutboxMessage>, AdminError> {
        on!(self, OutboxAdmin.show(id))
    }

    /// See [`OutboxAdmin::count`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn outbox_count(&self, filter: &OutboxFilter) -> Result<u64, AdminError> {
        on!(self, OutboxAdmin.count(filter))
    }

    /// See [`OutboxAdmin::requeue`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn outbox_requeue(&self, filter: &OutboxFilter) -> Result<OutboxChange, AdminError> {
        on!(self, OutboxAdmin.requeue(filter))
    }

    /// See [`OutboxAdmin::purgeable`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn outbox_purgeable(
        &self,
        filter: &OutboxFilter,
        what: OutboxPurge,
    ) -> Result<u64, AdminError> {
        on!(self, OutboxAdmin.purgeable(filter, what))
    }

    /// See [`OutboxAdmin::purge`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn outbox_purge(
        &self,
        filter: &OutboxFilter,
        what: OutboxPurge,
    ) -> Result<OutboxChange, AdminError> {
        on!(self, OutboxAdmin.purge(filter, what))
    }

    /// See [`InboxAdmin::stats`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn inbox_stats(&self) -> Result<Vec<InboxStats>, AdminError> {
        on!(self, InboxAdmin.stats())
    }

    /// See [`InboxAdmin::list`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn inbox_list(
        &self,
        consumer: Option<&str>,
        key: Option<&[u8]>,
        limit: u64,
    ) -> Result<Vec<InboxRecord>, AdminError> {
        on!(self, InboxAdmin.list(consumer, key, limit))
    }

    /// See [`InboxAdmin::count`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn inbox_count(&self, consumer: &str, what: &InboxPurge) -> Result<u64, AdminError> {
        on!(self, InboxAdmin.count(consumer, what))
    }

    /// See [`InboxAdmin::purge`].
    ///
    /// # Errors
    /// As there, and when the database cannot be reached.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn inbox_purge(&self, consumer: &str, what: &InboxPurge) -> Result<u64, AdminError> {
        on!(self, InboxAdmin.purge(consumer, what))
    }
}

/// A URL may hold a password: server, port and database, or the file.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Postgres(options) => {
                let name = options.get_database().unwrap_or_default();
                write!(f, "postgres://{}:{}/{name}", options.get_host(), options.get_port())
            }
            Kind::Sqlite(options) => write!(f, "sqlite:{}", options.get_filename().display()),
        }
    }
}
