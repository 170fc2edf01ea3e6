//! The statements for PostgreSQL. Other processes read and write the same rows meanwhile: what is written says which row
//! it has seen, by its version, and is left out if that is not there any more.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use consumer_core::dedup::parking::Parked;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Row as _,
    postgres::{PgConnectOptions, PgRow},
};

use crate::{
    Tables,
    dedup::{
        batch::{Changes, Loaded},
        driver::Backend,
        jobs::Keys,
        record::{self, Columns, Kept, Row, Rows, Unreadable},
    },
};

/// Rows deleted at once.
const SWEPT: u32 = 1_000;

/// Where connections come from.
#[derive(Clone)]
pub(super) enum Server {
    Options(Box<PgConnectOptions>),
    /// The options that it has at the time: a password may have been changed.
    Pool(PgPool),
}

impl Server {
    pub(super) fn options(&self) -> PgConnectOptions {
        match self {
            Self::Options(options) => (**options).clone(),
            Self::Pool(pool) => (*pool.connect_options()).clone(),
        }
    }
}

pub(super) struct PostgresBackend {
    /// Not there after an error.
    connection: Option<PgConnection>,
    server: Server,
    /// For each answer of the server.
    timeout: Duration,
    sql: Statements,
}

struct Statements {
    states: Arc<str>,
    parked: Arc<str>,
    write_states: Arc<str>,
    write_parked: Arc<str>,
    sweep: [Arc<str>; 2],
}

impl Statements {
    fn new(tables: &Tables) -> Self {
        // In the order of their keys, so that two processes never wait for each other.
        let upsert = |table: &str, columns: &[(&str, &str)]| {
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            let arrays = columns.iter().enumerate().map(|(nth, (_, kind))| format!("${}::{kind}[]", nth + 1));
            let set = names[1..].iter().map(|name| format!("{name} = excluded.{name}"));
            tables.in_sql(&format!(
                "INSERT INTO {table} AS seen ({names}) SELECT * FROM UNNEST({arrays}) AS new ({names}) ORDER BY key_hash \
                 ON CONFLICT (key_hash) DO UPDATE SET {set} WHERE seen.version = excluded.version - 1 RETURNING key_hash",
                names = names.join(", "),
                arrays = arrays.collect::<Vec<_>>().join(", "),
                set = set.collect::<Vec<_>>().join(", "),
            ))
        };
        let select = |table: &str, columns: &[(&str, &str)]| {
            let names: Vec<String> = columns.iter().map(|(name, _)| format!("row.{name}")).collect();
            tables.in_sql(&format!(
                "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT AS now, {} \
                 FROM UNNEST($1::BYTEA[]) AS key (hash) LEFT JOIN {table} AS row ON row.key_hash = key.hash",
                names.join(", ")
            ))
        };
        // What another process has just prolonged, or is about to, is left alone; nobody is waited for.
        let sweep = |table: &str| {
            tables.in_sql(&format!(
                "DELETE FROM {table} WHERE key_hash IN (SELECT key_hash FROM {table} WHERE expires_at <= $1 \
                 ORDER BY expires_at LIMIT {SWEPT} FOR UPDATE SKIP LOCKED)"
            ))
        };
        Self {
            states: select("consumer_dedup", &STATES).into(),
            parked: select("consumer_parked", &PARKED).into(),
            write_states: upsert("consumer_dedup", &STATES).into(),
            write_parked: upsert("consumer_parked", &PARKED).into(),
            sweep: [sweep("consumer_dedup").into(), sweep("consumer_parked").into()],
        }
    }
}

const STATES: [(&str, &str); 14] = [
    ("key_hash", "BYTEA"),
    ("version", "BIGINT"),
    ("state", "SMALLINT"),
    ("expires_at", "BIGINT"),
    ("fingerprint", "BYTEA"),
    ("epoch", "BIGINT"),
    ("attempts", "BIGINT"),
    ("crashes", "BIGINT"),
    ("suspect", "BOOLEAN"),
    ("redrive", "BIGINT"),
    ("owner", "BYTEA"),
    ("lease_until", "BIGINT"),
    ("mode", "SMALLINT"),
    ("attempt", "BIGINT"),
];

const PARKED: [(&str, &str); 5] = [
    ("key_hash", "BYTEA"),
    ("version", "BIGINT"),
    ("ids", "BYTEA"),
    ("until", "BIGINT"),
    ("expires_at", "BIGINT"),
];

impl PostgresBackend {
    pub(super) fn new(server: Server, connection: PgConnection, timeout: Duration, tables: &Tables) -> Self {
        Self { connection: Some(connection), server, timeout, sql: Statements::new(tables) }
    }

    async fn take(&mut self) -> Result<PgConnection, sqlx::Error> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => within(self.timeout, PgConnection::connect_with(&self.server.options())).await,
        }
    }

    async fn select<T>(
        &self,
        connection: &mut PgConnection,
        sql: &Arc<str>,
        keys: &[u128],
        read: impl Fn(&PgRow) -> Result<T, Unreadable>,
    ) -> Result<(u64, Rows<T>), sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(hashes(keys));
        let rows = within(self.timeout, query.fetch_all(connection)).await?;
        let now = rows.first().map_or(Ok(0), |row| row.try_get("now"))?;
        let mut found = Rows::with_capacity(rows.len());
        for row in &rows {
            let Some(hash) = row.try_get::<Option<&[u8]>, _>("key_hash")? else { continue };
            let versioned = get(row, "version").and_then(|version| Ok(Row { version, record: read(row)? }));
            if let Ok(hash) = record::number(hash) {
                found.insert(hash, versioned);
            }
        }
        Ok((record::unsigned(now), found))
    }
}

impl Backend for PostgresBackend {
    async fn load(&mut self, keys: &Keys) -> Result<Loaded, sqlx::Error> {
        let mut connection = self.take().await?;
        let mut loaded = Loaded::default();
        // Without any keys too: it is a sign of life.
        if !keys.states.is_empty() || keys.parked.is_empty() {
            let read = |row: &PgRow| columns(row)?.kept();
            (loaded.now, loaded.states) =
                self.select(&mut connection, &self.sql.states, &keys.states, read).await?;
        }
        if !keys.parked.is_empty() {
            let read =
                |row: &PgRow| record::parked(get(row, "ids")?, get(row, "until")?, get(row, "expires_at")?);
            (loaded.now, loaded.parked) =
                self.select(&mut connection, &self.sql.parked, &keys.parked, read).await?;
        }
        self.connection = Some(connection);
        Ok(loaded)
    }

    async fn write(&mut self, changes: &Changes) -> Result<Keys, sqlx::Error> {
        let mut connection = self.take().await?;
        let mut conflicts = Keys::default();
        if !changes.states.is_empty() {
            let query =
                with_states(sqlx::query(AssertSqlSafe(self.sql.write_states.clone())), &changes.states);
            let done = within(self.timeout, query.fetch_all(&mut connection)).await;
            conflicts.states = not_written(&changes.states, done)?;
        }
        if !changes.parked.is_empty() {
            let query =
                with_parked(sqlx::query(AssertSqlSafe(self.sql.write_parked.clone())), &changes.parked);
            let done = within(self.timeout, query.fetch_all(&mut connection)).await;
            conflicts.parked = not_written(&changes.parked, done)?;
        }
        self.connection = Some(connection);
        Ok(conflicts)
    }

    async fn sweep(&mut self, now: u64) -> Result<bool, sqlx::Error> {
        let mut connection = self.take().await?;
        let mut more = false;
        for sql in &self.sql.sweep {
            let delete = sqlx::query(AssertSqlSafe(sql.clone())).bind(record::signed(now));
            let done = within(self.timeout, delete.execute(&mut connection)).await?;
            more |= done.rows_affected() >= u64::from(SWEPT);
        }
        self.connection = Some(connection);
        Ok(more)
    }

    async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = within(self.timeout, connection.close()).await;
        }
    }
}

type Query<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

fn with_states<'q>(query: Query<'q>, changes: &[(u128, Row<Kept>)]) -> Query<'q> {
    let rows: Vec<Columns> = changes.iter().map(|(_, row)| Columns::of(&row.record)).collect();
    macro_rules! column {
        ($name:ident) => {
            rows.iter().map(|row| row.$name.clone()).collect::<Vec<_>>()
        };
    }
    query
        .bind(changes.iter().map(|(hash, _)| record::bytes(*hash)).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, row)| row.version).collect::<Vec<_>>())
        .bind(column!(state))
        .bind(column!(expires_at))
        .bind(column!(fingerprint))
        .bind(column!(epoch))
        .bind(column!(attempts))
        .bind(column!(crashes))
        .bind(column!(suspect))
        .bind(column!(redrive))
        .bind(column!(owner))
        .bind(column!(lease_until))
        .bind(column!(mode))
        .bind(column!(attempt))
}

fn with_parked<'q>(query: Query<'q>, changes: &[(u128, Row<Parked>)]) -> Query<'q> {
    query
        .bind(changes.iter().map(|(hash, _)| record::bytes(*hash)).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, row)| row.version).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, row)| record::ids(&row.record)).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, row)| record::signed(row.record.until)).collect::<Vec<_>>())
        .bind(changes.iter().map(|(_, row)| record::signed(row.record.expires_at)).collect::<Vec<_>>())
}

/// The keys that somebody else has written meanwhile. A statement that the server has given up, and with that undone, so
/// that others could go on, has written none.
fn not_written<T>(
    changes: &[(u128, Row<T>)],
    done: Result<Vec<PgRow>, sqlx::Error>,
) -> Result<Vec<u128>, sqlx::Error> {
    let written = match done {
        Ok(rows) if rows.len() == changes.len() => return Ok(Vec::new()),
        Ok(rows) => {
            let hash = |row: &PgRow| {
                record::number(row.try_get("key_hash")?).map_err(|e| sqlx::Error::Decode(e.into()))
            };
            rows.iter().map(hash).collect::<Result<HashSet<u128>, sqlx::Error>>()?
        }
        Err(error) if is_given_up(&error) => HashSet::new(),
        Err(error) => return Err(error),
    };
    Ok(changes.iter().map(|(hash, _)| *hash).filter(|hash| !written.contains(hash)).collect())
}

/// A deadlock, or what a database answers whose default isolation is stricter than READ COMMITTED.
fn is_given_up(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40P01" | "40001"))
}

fn hashes(keys: &[u128]) -> Vec<Vec<u8>> {
    keys.iter().map(|hash| record::bytes(*hash)).collect()
}

fn columns(row: &PgRow) -> Result<Columns, Unreadable> {
    Ok(Columns {
        state: get(row, "state")?,
        expires_at: get(row, "expires_at")?,
        fingerprint: get(row, "fingerprint")?,
        epoch: get(row, "epoch")?,
        attempts: get(row, "attempts")?,
        crashes: get(row, "crashes")?,
        suspect: get(row, "suspect")?,
        redrive: get(row, "redrive")?,
        owner: get(row, "owner")?,
        lease_until: get(row, "lease_until")?,
        mode: get(row, "mode")?,
        attempt: get(row, "attempt")?,
    })
}

fn get<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(
    row: &'r PgRow,
    name: &str,
) -> Result<T, Unreadable> {
    row.try_get(name).map_err(|error| error.to_string())
}

/// A server that does not answer is as good as none.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, work).await.map_err(late)?
}
