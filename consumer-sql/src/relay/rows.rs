//! What both databases answer alike, read in one place.

use std::time::Duration;

use sqlx::{ColumnIndex, Decode, Type};

use super::Lag;
use crate::outbox::row::{NewRow, Row};

pub(super) const HAS_WORK: &str = "SELECT EXISTS (SELECT 1 FROM consumer_outbox WHERE state = 0) \
    OR EXISTS (SELECT 1 FROM consumer_outbox WHERE state = 2 AND due_at IS NOT NULL)";

/// Those that may be published, and the ids of those behind a failed one. A row that cannot be read is one that says so: SQLite
/// keeps what it is given, also a text that is none.
pub(super) fn sorted<R: sqlx::Row>(rows: &[R]) -> Result<(Vec<Row>, Vec<i64>), sqlx::Error>
where
    for<'a> &'a str: ColumnIndex<R>,
    for<'a> bool: Decode<'a, R::Database> + Type<R::Database>,
    for<'a> i64: Decode<'a, R::Database> + Type<R::Database>,
    for<'a> String: Decode<'a, R::Database> + Type<R::Database>,
    for<'a> Vec<u8>: Decode<'a, R::Database> + Type<R::Database>,
{
    let (mut free, mut behind) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let id = row.try_get("id")?;
        if row.try_get("behind")? {
            behind.push(id);
            continue;
        }
        let message = || {
            Ok::<_, sqlx::Error>(NewRow {
                destination: row.try_get("destination")?,
                message_id: row.try_get("message_id")?,
                message_key: row.try_get("message_key")?,
                headers: row.try_get("headers")?,
                payload: row.try_get("payload")?,
            })
        };
        free.push(Row {
            id,
            attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(0),
            had_failed: row.try_get("had_failed")?,
            message: message().map_err(|error| error.to_string()),
        });
    }
    Ok((free, behind))
}

pub(super) fn lag<R: sqlx::Row>(row: &R) -> Result<Lag, sqlx::Error>
where
    for<'a> &'a str: ColumnIndex<R>,
    for<'a> i64: Decode<'a, R::Database> + Type<R::Database>,
{
    let count = |name| row.try_get::<i64, _>(name).map(|count| u64::try_from(count).unwrap_or(0));
    let oldest: Option<i64> = row.try_get("oldest")?;
    Ok(Lag {
        waiting: count("waiting")?,
        oldest: Duration::from_millis(oldest.and_then(|it| u64::try_from(it).ok()).unwrap_or(0)),
        held: count("held")?,
        quarantined: count("quarantined")?,
    })
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
