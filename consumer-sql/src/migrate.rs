//! The tables, by versioned migrations.

use sqlx::{
    AssertSqlSafe, SqlSafeStr,
    migrate::{Migrate, Migration, MigrationType, Migrator},
};

use crate::{SqlError, Tables};

/// A database that this crate has statements for: `sqlx::Postgres` (feature `postgres`) or `sqlx::Sqlite` (feature `sqlite`).
pub trait Database: sqlx::Database<Connection: Migrate> + crate::inbox::Statements + sealed::Sealed {
    /// Version, title and text, in their order.
    #[doc(hidden)]
    const MIGRATIONS: &'static [(i64, &'static str, &'static str)];
    /// Whether tables can be in a schema.
    #[doc(hidden)]
    const HAS_SCHEMAS: bool;
}

pub(crate) mod sealed {
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
}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for sqlx::Sqlite {}

#[cfg(feature = "sqlite")]
impl Database for sqlx::Sqlite {
    const MIGRATIONS: &'static [(i64, &'static str, &'static str)] =
        migrations!("sqlite": 1 "dedup", 2 "inbox", 3 "outbox");
    const HAS_SCHEMAS: bool = false;
}

/// Creates the tables, or brings them to this version. Several processes may do that at once.
///
/// What was done is in a table of its own, `consumer_migrations`. Who has migrations of their own takes the text of
/// [`migrations_sql`] into them instead, or the files in this crate's folder `migrations`.
///
/// # Errors
/// With `is_schema()` when they were made by a later version; `is_denied()` when the user may not create them. Trying again
/// is safe.
///
/// # Cancel safety
/// Each migration is done wholly or not at all. (SQLite: so are all of them.) Use the connection for nothing else if the
/// future is dropped: on PostgreSQL it may hold the lock of the migrations.
pub async fn migrate<DB: Database>(connection: &mut DB::Connection, tables: &Tables) -> Result<(), SqlError> {
    check::<DB>(tables)?;
    let migrations = DB::MIGRATIONS.iter().map(|(version, title, sql)| {
        let sql = AssertSqlSafe(tables.in_sql(sql)).into_sql_str();
        Migration::new(*version, (*title).into(), MigrationType::Simple, sql, false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(tables.in_sql("consumer_migrations"));
    if let Some(schema) = tables.schema() {
        migrator.create_schema(schema.to_owned());
    }
    // Its short form, `run`, makes a future that is not known to be `Send`.
    let run = migrator.run_direct(None, connection, false).await;
    run.map_err(|error| SqlError::migration(format_args!("the tables {tables} cannot be created"), error))
}

/// The text of all migrations with these names, for migrations of one's own: version, title and statements, in the order
/// in which they have to be run.
///
/// # Errors
/// With `is_config()` when a schema is asked for and the database has none.
pub fn migrations_sql<DB: Database>(tables: &Tables) -> Result<Vec<(i64, &'static str, String)>, SqlError> {
    check::<DB>(tables)?;
    Ok(DB::MIGRATIONS.iter().map(|(version, title, sql)| (*version, *title, tables.in_sql(sql))).collect())
}

fn check<DB: Database>(tables: &Tables) -> Result<(), SqlError> {
    match tables.schema() {
        Some(schema) if !DB::HAS_SCHEMAS => Err(SqlError::config(format!(
            "{} has no schemas: leave `{schema}` out, and give the tables a prefix if need be",
            DB::NAME
        ))),
        _ => Ok(()),
    }
}
