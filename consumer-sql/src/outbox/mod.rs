//! Messages that are published if, and only if, a transaction commits.

pub(crate) mod headers;
pub(crate) mod row;

use std::{fmt, future::Future, sync::Arc};

use consumer_core::{Outgoing, message::wire};
use sqlx::{AssertSqlSafe, Executor};

use crate::{Database, SqlError, Tables};
use row::NewRow;

const INSERT: &str = "INSERT INTO consumer_outbox (destination, message_id, message_key, headers, payload) \
                      VALUES ($1, $2, $3, $4, $5)";

/// Writes messages into the table of the outbox, within the caller's transaction. A [`Relay`](crate::Relay) publishes them.
///
/// # What it guarantees
/// A message of a transaction that commits is published at least once, with the id it was given here, and those of one
/// destination and message key in the order in which they were written, as far as their transactions did not overlap. A
/// message of a transaction that does not commit is never published. Payload and headers arrive as they are given here.
///
/// Where two transactions write messages of one key at the same time, their order is not defined. Who needs it lets them wait
/// for each other, by locking a row that both need: `SELECT … FROM orders WHERE id = $1 FOR UPDATE`.
///
/// # Other languages
/// Any program may write rows, by the one statement that [`statement`](Self::statement) gives: destination, message id, message
/// key (null: no order), headers (a JSON array, `[["name", "value"], …]`, where a value that is no text is
/// `{"base64": "…"}`), payload (null: a tombstone).
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use consumer_core::{Message, Outgoing};
/// use consumer_sql::{Outbox, Tables, migrate};
/// use sqlx::{Connection, Sqlite, SqliteConnection};
///
/// let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
/// migrate::<Sqlite>(&mut connection, &Tables::new()).await?;
/// # sqlx::query("CREATE TABLE orders (id TEXT)").execute(&mut connection).await?;
/// let outbox = Outbox::new();
///
/// let mut transaction = connection.begin().await?;
/// sqlx::query("INSERT INTO orders (id) VALUES ('o-17')").execute(&mut *transaction).await?;
/// let placed = Message::builder().payload(r#"{"order_id":"o-17"}"#).key("o-17").build();
/// outbox.publish(&mut *transaction, &Outgoing::new("orders.placed", placed)).await?;
/// transaction.commit().await?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Outbox {
    insert: Arc<str>,
}

impl Outbox {
    /// In the table `consumer_outbox`.
    pub fn new() -> Self {
        Self::in_tables(&Tables::new())
    }

    /// In a table of another name.
    pub fn in_tables(tables: &Tables) -> Self {
        Self { insert: tables.in_sql(INSERT).into() }
    }

    /// The statement that writes one message.
    pub fn statement(&self) -> &str {
        &self.insert
    }

    /// Writes a message. It is published when the transaction that `executor` is in has committed: `&mut *transaction`. With
    /// a pool or a connection outside of a transaction, it is published whatever becomes of what else is written.
    ///
    /// # Errors
    /// With `is_config()` when the message cannot be kept in the table: no id (take [`Outgoing::new`], which gives it one),
    /// an id that is no text, or a delay, which the outbox does not keep. Else as the database says; on PostgreSQL the
    /// transaction is then aborted.
    ///
    /// # Cancel safety
    /// Dropped, the row is written or not: roll the transaction back.
    pub fn publish<'e, E>(
        &self,
        executor: E,
        outgoing: &Outgoing,
    ) -> impl Future<Output = Result<(), SqlError>> + Send + use<'e, E>
    where
        E: Executor<'e, Database: Database>,
    {
        // No async fn: a future that holds `E` is not known to be `Send`, and so could be awaited in no handler.
        let written = |error| SqlError::driver("the message cannot be written to the outbox", error);
        let insert = new_row(outgoing).and_then(|row| {
            let arguments = <E::Database as Database>::outbox_row(row);
            let arguments = arguments.map_err(|error| written(sqlx::Error::Encode(error)))?;
            let statement = AssertSqlSafe(self.insert.to_string());
            Ok(executor.execute(sqlx::query_with::<E::Database, _>(statement, arguments)))
        });
        async move { insert?.await.map(drop).map_err(written) }
    }
}

fn new_row(outgoing: &Outgoing) -> Result<NewRow, SqlError> {
    let (target, message) = (outgoing.target(), outgoing.message());
    let wrong = |what: &str| {
        SqlError::config(format!("a message for `{target}` cannot be written to the outbox: {what}"))
    };
    if outgoing.due().is_some() || outgoing.delay_by().is_some() {
        return Err(wrong("it asks for a delay, and the relay publishes at once"));
    }
    if target.is_empty() {
        return Err(wrong("it has no destination"));
    }
    let mut headers = outgoing.headers();
    let id = headers.get(wire::MESSAGE_ID).or(message.id()).cloned();
    let id = id.ok_or_else(|| {
        wrong("it has no id, by which consumers would deduplicate: `Outgoing::new` gives it one")
    })?;
    let message_id = String::from_utf8(id.to_vec()).map_err(|_| wrong("its id is no UTF-8 text"))?;
    headers.remove(wire::MESSAGE_ID);
    Ok(NewRow {
        destination: target.to_owned(),
        message_id,
        message_key: message.key().map(|key| key.to_vec()),
        headers: headers::write(&headers),
        payload: (!message.is_tombstone()).then(|| message.payload().to_vec()),
    })
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outbox").field(&self.insert).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consumer_core::Message;

    use super::*;

    /// It compiles, and that is the test.
    #[cfg(feature = "sqlite")]
    #[expect(dead_code, reason = "nobody calls it: the compiler reads it")]
    fn what_publishes_can_be_spawned(pool: sqlx::SqlitePool, outbox: Outbox, outgoing: Outgoing) {
        tokio::spawn(async move {
            let mut transaction = pool.begin().await.unwrap();
            outbox.publish(&mut *transaction, &outgoing).await.unwrap();
            transaction.commit().await.unwrap();
        });
    }

    /// What other languages are told to write.
    #[test]
    fn the_statement_of_the_docs_is_ours() {
        let docs = include_str!("../../../docs/sql.md");
        assert!(docs.contains(INSERT), "docs/sql.md has not `{INSERT}`");
        for migration in [
            include_str!("../../migrations/postgres/0003_outbox.sql"),
            include_str!("../../migrations/sqlite/0003_outbox.sql")
                .replace("?, ?, ?, ?, ?", "$1, $2, $3, $4, $5")
                .as_str(),
        ] {
            assert!(migration.contains(INSERT), "{migration}");
        }
    }

    #[test]
    fn what_the_table_cannot_keep_is_refused() {
        let message = || Message::builder().payload("x");
        let cases = [
            (Outgoing::copy("t", message().build()), "no id"),
            (Outgoing::new("t", message().id(vec![0xff]).build()), "UTF-8"),
            (Outgoing::new("t", message().build()).delay(Duration::from_secs(1)), "delay"),
            (Outgoing::new("", message().build()), "destination"),
        ];
        for (outgoing, word) in cases {
            let error = new_row(&outgoing).err().unwrap();
            assert!(error.is_config() && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_row_has_all_of_the_message() {
        let message =
            Message::builder().payload("x").key("k").id("i-1").header("a", "1").header("raw", vec![0xff]);
        let row = new_row(&Outgoing::new("t", message.build()).set("traceparent", "00-1")).unwrap();
        assert_eq!((&*row.destination, &*row.message_id), ("t", "i-1"));
        assert_eq!((row.message_key.as_deref(), row.payload.as_deref()), (Some(&b"k"[..]), Some(&b"x"[..])));
        let outgoing = row::Row::of(7, row).outgoing().unwrap();
        assert_eq!(outgoing.headers().get_str("message-id"), Some("i-1"));
        assert_eq!(outgoing.headers().get_str("traceparent"), Some("00-1"));
        assert_eq!(outgoing.headers().get("raw").unwrap().as_ref(), [0xff]);
        let tombstone = new_row(&Outgoing::new("t", Message::builder().key("k").build())).unwrap();
        assert_eq!(tombstone.payload, None);
        assert!(row::Row::of(8, tombstone).outgoing().unwrap().message().is_tombstone());
    }
}
