//! The transaction as the argument of a handler.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use consumer_core::{Failure, Message, handler::FromMessage};
use sqlx::Connection;

use super::transaction::{NotHere, Open, Slot};
use crate::Database;

/// The transaction of the [`InboxLayer`](super::InboxLayer): an argument of handlers.
///
/// It derefs to sqlx's connection, so `&mut *tx` is what statements are executed on. The layer commits it when the handler
/// has succeeded, and rolls it back when not; a handler says neither COMMIT nor ROLLBACK. A part that may fail by itself
/// goes into a savepoint (sqlx: `tx.begin()` with its trait `Connection`).
///
/// Return every error of a statement. On PostgreSQL the transaction is of no use after one, and a savepoint that then fails to
/// begin, or whose beginning is dropped half way, ends the transaction: what followed would happen without a record and
/// again at each attempt. On SQLite a statement with `OR ROLLBACK`, or a trigger with `RAISE(ROLLBACK)`, ends it likewise; that
/// is not noticed before the commit, which then fails.
///
/// # Panics
/// On PostgreSQL the next use (`&mut *tx`) after such a savepoint panics, so that nothing is executed outside of the
/// transaction. [`CatchPanicLayer`](consumer_core::CatchPanicLayer) makes that a failure of the message.
///
/// Dropped, it goes back to the layer, and can be taken from the message again. A handler that returns while something
/// that it has spawned still has it fails for good, and nothing is committed.
pub struct Tx<DB: Database> {
    /// None when dropped.
    open: Option<Open<DB>>,
    slot: Arc<Slot<DB>>,
}

impl<DB: Database> Tx<DB> {
    /// Takes the transaction from the message: for handlers that are services of their own.
    ///
    /// ```no_run
    /// # use consumer_core::{Failure, Message};
    /// use consumer_sql::Tx;
    /// use sqlx::Postgres;
    ///
    /// async fn handle(message: Message) -> Result<(), Failure> {
    ///     let mut tx = Tx::<Postgres>::take(&message)?;
    ///     sqlx::query("UPDATE stock SET amount = amount - 1").execute(&mut *tx).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// Permanently, when it is taken already, when the message is done with, when an earlier attempt has had it (the retry
    /// layer is inside the inbox), and when there is no inbox of this database around the handler.
    pub fn take(message: &Message) -> Result<Self, Failure> {
        let Some(slot) = message.extension::<Arc<Slot<DB>>>() else {
            return Err(Failure::permanent(format!(
                "no transaction: there is no inbox layer for {} around the handler, or a layer inside it has made a \
                 message of its own",
                DB::NAME
            )));
        };
        match slot.take(message.attempt()) {
            Ok(open) => Ok(Self { open: Some(open), slot: slot.clone() }),
            Err(NotHere::Taken) => Err(Failure::permanent(
                "the inbox's transaction is taken already: a handler has one `Tx`, and hands it on by reference",
            )),
            Err(NotHere::Over) => Err(Failure::permanent(
                "the inbox's transaction is over: the layer is done with this message",
            )),
            Err(NotHere::Retried) => Err(Failure::permanent(
                "the inbox's transaction holds what an earlier attempt has done: the retry layer goes outside the inbox, \
                 for a transaction to each attempt",
            )),
        }
    }
}

impl<S, DB: Database> FromMessage<S> for Tx<DB> {
    fn from_message(message: &Message, _: &S) -> Result<Self, Failure> {
        Self::take(message)
    }
}

#[expect(clippy::expect_used, reason = "only `drop` takes it")]
impl<DB: Database> Deref for Tx<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.open.as_ref().expect("a transaction is there until it is dropped").get()
    }
}

#[expect(clippy::expect_used, reason = "only `drop` takes it")]
impl<DB: Database> DerefMut for Tx<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        let connection = self.open.as_mut().expect("a transaction is there until it is dropped").connection();
        assert!(
            connection.is_in_transaction(),
            "the inbox's transaction is over: a savepoint in it could not be begun, and the handler has gone on"
        );
        connection
    }
}

impl<DB: Database> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.slot.put_back(open);
        }
    }
}

impl<DB: Database> fmt::Debug for Tx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tx<{}>", DB::NAME)
    }
}
