//! States as rows.

use consumer_core::dedup::{
    Mode, Owner,
    parking::Parked,
    protocol::{Claimed, Numbers, State, Write},
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

/// Rows deleted at once: others wait meanwhile.
const SWEPT: i64 = 1_000;

const CLAIMED: i64 = 1;
const COMPLETED: i64 = 2;
const RELEASED: i64 = 3;
const DEFERRED: i64 = 4;
const DEAD_LETTERED: i64 = 5;

/// The state of a key; one that has expired is absent.
pub(super) async fn state(
    connection: &mut SqliteConnection,
    hash: u128,
    now: u64,
) -> Result<State, sqlx::Error> {
    let row = sqlx::query(
        "SELECT state, expires_at, fingerprint, epoch, attempts, crashes, suspect, redrive, owner, lease_until, mode, \
         attempt FROM consumer_dedup WHERE key_hash = ? AND expires_at > ?",
    )
    .bind(&hash.to_be_bytes()[..])
    .bind(signed(now))
    .fetch_optional(connection)
    .await?;
    row.map_or(Ok(State::Absent), |row| read(&row))
}

fn read(row: &SqliteRow) -> Result<State, sqlx::Error> {
    let fingerprint: Option<Vec<u8>> = row.try_get("fingerprint")?;
    let fingerprint = fingerprint.map(|bytes| number(&bytes)).transpose()?;
    let unsigned = |name| row.try_get::<i64, _>(name).map(|value| u64::try_from(value).unwrap_or(0));
    let small = |name| unsigned(name).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let numbers = Numbers {
        epoch: unsigned("epoch")?,
        attempts: small("attempts")?,
        crashes: small("crashes")?,
        suspect: row.try_get::<i64, _>("suspect")? != 0,
        fingerprint,
        redrive: small("redrive")?,
    };
    Ok(match row.try_get::<i64, _>("state")? {
        CLAIMED => State::Claimed(Claimed {
            owner: owner(row.try_get("owner")?)?,
            lease_until: unsigned("lease_until")?,
            mode: match row.try_get::<i64, _>("mode")? {
                0 => Mode::Normal,
                1 => Mode::Suspect,
                _ => Mode::Alone,
            },
            numbers,
        }),
        COMPLETED => State::Completed { fingerprint },
        RELEASED => State::Released(numbers),
        DEFERRED => State::Deferred { attempt: small("attempt")?, numbers },
        DEAD_LETTERED => State::DeadLettered(numbers),
        // Written by a version that knows more: better no answer than a wrong one.
        other => return Err(unknown(format!("state {other}"))),
    })
}

/// Writes what the protocol says.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    hash: u128,
    write: &Write,
    now: u64,
) -> Result<(), sqlx::Error> {
    let none = Numbers { epoch: 0, attempts: 0, crashes: 0, suspect: false, fingerprint: None, redrive: 0 };
    let (state, numbers, claimed, attempt) = match write.state {
        State::Absent => return Ok(()),
        State::Claimed(claimed) => (CLAIMED, claimed.numbers, Some(claimed), None),
        State::Completed { fingerprint } => (COMPLETED, Numbers { fingerprint, ..none }, None, None),
        State::Released(numbers) => (RELEASED, numbers, None, None),
        State::Deferred { attempt, numbers } => (DEFERRED, numbers, None, Some(attempt)),
        State::DeadLettered(numbers) => (DEAD_LETTERED, numbers, None, None),
    };
    let lifetime = u64::try_from(write.lifetime.as_millis()).unwrap_or(u64::MAX);
    let mode = claimed.map(|claimed| match claimed.mode {
        Mode::Normal => 0_i64,
        Mode::Suspect => 1,
        Mode::Alone => 2,
    });
    sqlx::query(
        "INSERT OR REPLACE INTO consumer_dedup (key_hash, state, expires_at, fingerprint, epoch, attempts, crashes, suspect, \
         redrive, owner, lease_until, mode, attempt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&hash.to_be_bytes()[..])
    .bind(state)
    .bind(signed(now.saturating_add(lifetime)))
    .bind(numbers.fingerprint.map(|fingerprint| fingerprint.to_be_bytes().to_vec()))
    .bind(signed(numbers.epoch))
    .bind(i64::from(numbers.attempts))
    .bind(i64::from(numbers.crashes))
    .bind(i64::from(numbers.suspect))
    .bind(i64::from(numbers.redrive))
    .bind(claimed.map(|claimed| owner_bytes(&claimed.owner)))
    .bind(claimed.map(|claimed| signed(claimed.lease_until)))
    .bind(mode)
    .bind(attempt.map(i64::from))
    .execute(connection)
    .await?;
    Ok(())
}

/// The messages of a key that wait; none is no row.
pub(super) async fn parked(connection: &mut SqliteConnection, hash: u128) -> Result<Parked, sqlx::Error> {
    let row = sqlx::query("SELECT ids, until, expires_at FROM consumer_parked WHERE key_hash = ?")
        .bind(&hash.to_be_bytes()[..])
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(Parked::default()) };
    let ids: Vec<u8> = row.try_get("ids")?;
    let unsigned = |name| row.try_get::<i64, _>(name).map(|value| u64::try_from(value).unwrap_or(0));
    Ok(Parked {
        ids: ids.chunks(16).map(number).collect::<Result<_, _>>()?,
        until: unsigned("until")?,
        expires_at: unsigned("expires_at")?,
    })
}

pub(super) async fn write_parked(
    connection: &mut SqliteConnection,
    hash: u128,
    parked: &Parked,
) -> Result<(), sqlx::Error> {
    let hash = hash.to_be_bytes().to_vec();
    if parked.ids.is_empty() {
        sqlx::query("DELETE FROM consumer_parked WHERE key_hash = ?").bind(hash).execute(connection).await?;
        return Ok(());
    }
    let ids: Vec<u8> = parked.ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    sqlx::query(
        "INSERT OR REPLACE INTO consumer_parked (key_hash, ids, until, expires_at) VALUES (?, ?, ?, ?)",
    )
    .bind(hash)
    .bind(ids)
    .bind(signed(parked.until))
    .bind(signed(parked.expires_at))
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a portion of what has expired.
pub(super) async fn sweep(connection: &mut SqliteConnection, now: u64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM consumer_dedup WHERE key_hash IN \
         (SELECT key_hash FROM consumer_dedup WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
    )
    .bind(signed(now))
    .bind(SWEPT)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM consumer_parked WHERE key_hash IN \
         (SELECT key_hash FROM consumer_parked WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
    )
    .bind(signed(now))
    .bind(SWEPT)
    .execute(connection)
    .await?;
    Ok(())
}

/// SQLite's integers have a sign; what is beyond them is as good as for ever.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn number(bytes: &[u8]) -> Result<u128, sqlx::Error> {
    let bytes = bytes.try_into().map_err(|_| unknown(format!("{} bytes where 16 belong", bytes.len())))?;
    Ok(u128::from_be_bytes(bytes))
}

fn owner_bytes(owner: &Owner) -> Vec<u8> {
    [&owner.process.to_be_bytes()[..], &owner.seq.to_be_bytes()].concat()
}

fn owner(bytes: Vec<u8>) -> Result<Owner, sqlx::Error> {
    let wrong = || unknown("an owner that is none".to_owned());
    let (process, seq) = bytes.split_at_checked(16).ok_or_else(wrong)?;
    Ok(Owner { process: number(process)?, seq: u64::from_be_bytes(seq.try_into().map_err(|_| wrong())?) })
}

fn unknown(what: String) -> sqlx::Error {
    sqlx::Error::Decode(format!("a row of consumer_dedup cannot be read: {what}").into())
}
