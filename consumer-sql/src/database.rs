//! The databases that this crate has statements for.

use std::future::Future;

use sqlx::{Arguments, IntoArguments, Pool, error::BoxDynError, migrate::Migrate};
use tokio::sync::watch;

use crate::{Tables, admin::dialect::Dialect, outbox::row::NewRow, relay::Session};

/// A database that this crate has statements for: `sqlx::Postgres` (feature `postgres`) or `sqlx::Sqlite` (feature `sqlite`).
///
/// What is hidden in it may change with any version.
pub trait Database:
    sqlx::Database<Connection: Migrate, Arguments: IntoArguments<Self>>
    + Dialect
    + crate::inbox::Statements
    + sealed::Sealed
{
    /// Version, title and text, in their order.
    #[doc(hidden)]
    const MIGRATIONS: &'static [(i64, &'static str, &'static str)];
    /// Whether tables can be in a schema.
    #[doc(hidden)]
    const HAS_SCHEMAS: bool;
    /// Begins a transaction that will write.
    #[doc(hidden)]
    const BEGIN: &'static str;

    /// One connection of a relay.
    #[doc(hidden)]
    type Session: Session<Database = Self>;

    /// The values of a row of the outbox.
    #[doc(hidden)]
    fn outbox_row(row: NewRow) -> Result<Self::Arguments, BoxDynError>;

    /// Wakes when rows are written to the outbox, until the stop; where the database cannot tell, it does nothing.
    #[doc(hidden)]
    fn listen(
        pool: Pool<Self>,
        tables: Tables,
        wake: watch::Sender<u64>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! migrations {
    ($folder:literal: $($version:literal $title:literal),*) => {
        &[$((
            $version,
            $title,
            include_str!(concat!("../migrations/", $folder, "/000", $version, "_", $title, ".sql")),
        )),*]
    };
}

#[cfg(feature = "postgres")]
impl sealed::Sealed for sqlx::Postgres {}

#[cfg(feature = "postgres")]
impl Database for sqlx::Postgres {
    const MIGRATIONS: &'static [(i64, &'static str, &'static str)] =
        migrations!("postgres": 1 "dedup", 2 "inbox", 3 "outbox");
    const HAS_SCHEMAS: bool = true;
    const BEGIN: &'static str = "BEGIN";

    type Session = crate::relay::postgres::PostgresSession;

    fn outbox_row(row: NewRow) -> Result<Self::Arguments, BoxDynError> {
        arguments(row)
    }

    fn listen(
        pool: Pool<Self>,
        tables: Tables,
        wake: watch::Sender<u64>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send {
        crate::relay::postgres::listen(pool, tables, wake, stop)
    }
}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for sqlx::Sqlite {}

#[cfg(feature = "sqlite")]
impl Database for sqlx::Sqlite {
    const MIGRATIONS: &'static [(i64, &'static str, &'static str)] =
        migrations!("sqlite": 1 "dedup", 2 "inbox", 3 "outbox");
    const HAS_SCHEMAS: bool = false;
    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    type Session = crate::relay::sqlite::SqliteSession;

    fn outbox_row(row: NewRow) -> Result<Self::Arguments, BoxDynError> {
        arguments(row)
    }

    async fn listen(_: Pool<Self>, _: Tables, _: watch::Sender<u64>, mut stop: watch::Receiver<bool>) {
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// In the order of the outbox's one statement.
fn arguments<A>(row: NewRow) -> Result<A, BoxDynError>
where
    A: Arguments,
    for<'a> String: sqlx::Encode<'a, A::Database> + sqlx::Type<A::Database>,
    for<'a> Option<Vec<u8>>: sqlx::Encode<'a, A::Database> + sqlx::Type<A::Database>,
{
    let mut arguments = A::default();
    arguments.add(row.destination)?;
    arguments.add(row.message_id)?;
    arguments.add(row.message_key)?;
    arguments.add(row.headers)?;
    arguments.add(row.payload)?;
    Ok(arguments)
}
