//! The tables, by versioned migrations.

use sqlx::{
    AssertSqlSafe, Connection, SqlSafeStr,
    migrate::{Migrate, Migration, MigrationType, Migrator},
};

use crate::{Database, SqlError, Tables};

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
/// Each migration is done wholly or not at all. (SQLite: so are all of them.) On PostgreSQL, close the connection if the future
/// was dropped: it may hold the lock of the migrations.
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
    let failed = |error| SqlError::migration(format_args!("the tables {tables} cannot be created"), error);
    // Who only uses the tables may have no right to create any.
    if is_done::<DB>(connection, &migrator).await {
        return Ok(());
    }
    if DB::ONE_WRITER {
        // SQLite has no lock for migrations but its own.
        let begun = connection.begin_with(AssertSqlSafe(DB::BEGIN)).await;
        let mut transaction = begun.map_err(|error| failed(error.into()))?;
        migrator.run_direct(None, &mut *transaction, false).await.map_err(failed)?;
        return sqlx::Transaction::commit(transaction).await.map_err(|error| failed(error.into()));
    }
    // Its short form, `run`, makes a future that is not known to be `Send`.
    let done = migrator.run_direct(None, connection, false).await;
    if done.is_err() {
        // It keeps the lock when it fails, and everybody else out.
        let _ = connection.unlock().await;
    }
    done.map_err(failed)
}

/// Whether every migration is known to be done, as it is here.
async fn is_done<DB: Database>(connection: &mut DB::Connection, migrator: &Migrator) -> bool {
    let Ok(applied) = connection.list_applied_migrations(&migrator.table_name).await else { return false };
    applied.len() == migrator.iter().count()
        && migrator
            .iter()
            .zip(&applied)
            .all(|(ours, done)| (ours.version, &ours.checksum) == (done.version, &done.checksum))
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
