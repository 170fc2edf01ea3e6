//! The statements for SQLite. One process at a time is between `load` and `write`.

use std::time::{Duration, Instant, SystemTime};

use sqlx::{
    AssertSqlSafe, Connection, QueryBuilder, Row as _, Sqlite, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use tokio::time::sleep;

use crate::{
    Tables,
    dedup::{
        batch::{Changes, Loaded},
        driver::Backend,
        jobs::Keys,
        record::{self, Columns, Row, Rows, Unreadable},
    },
};

/// Keys in one statement: it has at most 32,766 parameters.
const CHUNK: usize = 500;
/// Rows deleted at once: others wait meanwhile.
const SWEPT: u32 = 1_000;
/// How often a file that another process holds is asked for. SQLite's own waiting looks every 100 ms in the end, and a
/// process that writes batch after batch lets go for a fraction of a millisecond: the other would miss it for seconds.
const LOOK: Duration = Duration::from_millis(1);

pub(super) struct SqliteBackend {
    /// Not there after an error: what was begun is rolled back with it.
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    busy_timeout: Duration,
    clock: Clock,
    sql: Statements,
}

struct Statements {
    states: String,
    parked: String,
    write_states: String,
    write_parked: String,
    sweep: [String; 2],
}

impl Statements {
    fn new(tables: &Tables) -> Self {
        let sweep = |table| {
            let expired = "WHERE expires_at <= ? ORDER BY expires_at LIMIT";
            tables.in_sql(&format!(
                "DELETE FROM {table} WHERE key_hash IN (SELECT key_hash FROM {table} {expired} {SWEPT})"
            ))
        };
        Self {
            states: tables.in_sql(
                "SELECT key_hash, version, state, expires_at, fingerprint, epoch, attempts, crashes, suspect, redrive, \
                 owner, lease_until, mode, attempt FROM consumer_dedup WHERE key_hash IN (",
            ),
            parked: tables.in_sql(
                "SELECT key_hash, version, ids, until, expires_at FROM consumer_parked WHERE key_hash IN (",
            ),
            write_states: tables.in_sql(
                "INSERT OR REPLACE INTO consumer_dedup (key_hash, version, state, expires_at, fingerprint, epoch, attempts, \
                 crashes, suspect, redrive, owner, lease_until, mode, attempt) ",
            ),
            write_parked: tables.in_sql(
                "INSERT OR REPLACE INTO consumer_parked (key_hash, version, ids, until, expires_at) ",
            ),
            sweep: [sweep("consumer_dedup"), sweep("consumer_parked")],
        }
    }
}

impl SqliteBackend {
    pub(super) fn new(options: SqliteConnectOptions, busy_timeout: Duration, tables: &Tables) -> Self {
        Self { connection: None, options, busy_timeout, clock: Clock::new(), sql: Statements::new(tables) }
    }

    async fn take(&mut self) -> Result<SqliteConnection, sqlx::Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let mut connection = SqliteConnection::connect_with(&self.options).await?;
        // From here on `begin` waits.
        sqlx::query("PRAGMA busy_timeout = 0").execute(&mut connection).await?;
        Ok(connection)
    }

    /// Begins with the lock: without it from the start, two processes could both read and then one of them not write.
    async fn begin(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let asked = Instant::now();
        loop {
            match sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await {
                Err(error) if is_busy(&error) && asked.elapsed() < self.busy_timeout => sleep(LOOK).await,
                begun => return begun.map(drop),
            }
        }
    }
}

impl Backend for SqliteBackend {
    async fn load(&mut self, keys: &Keys) -> Result<Loaded, sqlx::Error> {
        let mut connection = self.take().await?;
        self.begin(&mut connection).await?;
        let now = self.clock.millis();
        let states =
            select(&mut connection, &self.sql.states, &keys.states, |row| columns(row)?.kept()).await?;
        let parked = select(&mut connection, &self.sql.parked, &keys.parked, |row| {
            record::parked(get(row, "ids")?, get(row, "until")?, get(row, "expires_at")?)
        })
        .await?;
        self.connection = Some(connection);
        Ok(Loaded { now, states, parked })
    }

    async fn write(&mut self, changes: &Changes) -> Result<Keys, sqlx::Error> {
        let mut connection = self.take().await?;
        for chunk in changes.states.chunks(CHUNK) {
            let mut insert = QueryBuilder::<Sqlite>::new(&self.sql.write_states);
            insert.push_values(chunk, |mut values, (hash, row)| {
                let columns = Columns::of(&row.record);
                values.push_bind(record::bytes(*hash)).push_bind(row.version).push_bind(columns.state);
                values.push_bind(columns.expires_at).push_bind(columns.fingerprint).push_bind(columns.epoch);
                values.push_bind(columns.attempts).push_bind(columns.crashes).push_bind(columns.suspect);
                values.push_bind(columns.redrive).push_bind(columns.owner).push_bind(columns.lease_until);
                values.push_bind(columns.mode).push_bind(columns.attempt);
            });
            insert.build().persistent(false).execute(&mut connection).await?;
        }
        for chunk in changes.parked.chunks(CHUNK) {
            let mut insert = QueryBuilder::<Sqlite>::new(&self.sql.write_parked);
            insert.push_values(chunk, |mut values, (hash, row)| {
                values
                    .push_bind(record::bytes(*hash))
                    .push_bind(row.version)
                    .push_bind(record::ids(&row.record));
                values.push_bind(record::signed(row.record.until));
                values.push_bind(record::signed(row.record.expires_at));
            });
            insert.build().persistent(false).execute(&mut connection).await?;
        }
        sqlx::query("COMMIT").execute(&mut connection).await?;
        self.connection = Some(connection);
        Ok(Keys::default())
    }

    async fn sweep(&mut self, now: u64) -> Result<bool, sqlx::Error> {
        let mut connection = self.take().await?;
        self.begin(&mut connection).await?;
        let mut more = false;
        for sql in &self.sql.sweep {
            let delete = sqlx::query(AssertSqlSafe(sql.as_str())).bind(record::signed(now));
            more |= delete.execute(&mut connection).await?.rows_affected() >= u64::from(SWEPT);
        }
        sqlx::query("COMMIT").execute(&mut connection).await?;
        self.connection = Some(connection);
        Ok(more)
    }

    async fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }
}

/// The rows of these keys, each for itself: one that cannot be read does no harm to the others.
async fn select<T>(
    connection: &mut SqliteConnection,
    sql: &str,
    keys: &[u128],
    read: impl Fn(&SqliteRow) -> Result<T, Unreadable>,
) -> Result<Rows<T>, sqlx::Error> {
    let mut found = Rows::with_capacity(keys.len());
    for chunk in keys.chunks(CHUNK) {
        let mut select = QueryBuilder::<Sqlite>::new(sql);
        let mut list = select.separated(", ");
        for hash in chunk {
            list.push_bind(record::bytes(*hash));
        }
        select.push(")");
        for row in select.build().persistent(false).fetch_all(&mut *connection).await? {
            let versioned = get(&row, "version").and_then(|version| Ok(Row { version, record: read(&row)? }));
            if let Ok(hash) = get(&row, "key_hash").and_then(record::number) {
                found.insert(hash, versioned);
            }
        }
    }
    Ok(found)
}

fn columns(row: &SqliteRow) -> Result<Columns, Unreadable> {
    Ok(Columns {
        state: get(row, "state")?,
        expires_at: get(row, "expires_at")?,
        fingerprint: get(row, "fingerprint")?,
        epoch: get(row, "epoch")?,
        attempts: get(row, "attempts")?,
        crashes: get(row, "crashes")?,
        suspect: get::<i64>(row, "suspect")? != 0,
        redrive: get(row, "redrive")?,
        owner: get(row, "owner")?,
        lease_until: get(row, "lease_until")?,
        mode: get(row, "mode")?,
        attempt: get(row, "attempt")?,
    })
}

fn get<'r, T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(
    row: &'r SqliteRow,
    name: &str,
) -> Result<T, Unreadable> {
    row.try_get(name).map_err(|error| error.to_string())
}

fn is_busy(error: &sqlx::Error) -> bool {
    // The primary code is the lower byte.
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

/// The machine's clock when the store was opened, moved on by the monotonic one.
struct Clock {
    opened: Instant,
    at: Duration,
}

impl Clock {
    fn new() -> Self {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { opened: Instant::now(), at }
    }

    fn millis(&self) -> u64 {
        u64::try_from((self.at + self.opened.elapsed()).as_millis()).unwrap_or(u64::MAX)
    }
}
