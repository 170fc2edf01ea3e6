//! The orders: each is written in one transaction with its idempotency key and its event.

use std::{fmt, sync::Arc};

use consumer::{
    BoxError, Headers, Message, Outgoing,
    sql::{Outbox, SqlError},
};
use sqlx::Pool;

use crate::{database::Shop, order::Order};

/// All orders, in a database that other processes may share.
pub(crate) struct Orders<DB: Shop> {
    pool: Pool<DB>,
    outbox: Outbox,
    queues: Arc<[String]>,
}

/// What became of an order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// It is committed; by this request, or by one before.
    Yes,
    /// The key stands for another order.
    OtherUnderKey,
    /// There is another order with this id.
    OtherUnderId,
}

impl<DB: Shop> Orders<DB> {
    /// Events are written for each of these queues.
    pub(crate) fn new(pool: Pool<DB>, queues: impl Into<Arc<[String]>>) -> Self {
        Self { pool, outbox: Outbox::new(), queues: queues.into() }
    }

    /// Where the same order is being placed elsewhere, it waits for what becomes of that.
    ///
    /// # Errors
    /// When it is not known to be committed. Trying again is safe.
    pub(crate) async fn place(
        &self,
        order: &Order,
        key: Option<&str>,
        context: &Headers,
    ) -> Result<Placed, DatabaseError> {
        // It begins by writing: one that had read before might find, on SQLite, that it cannot write any more.
        let mut transaction = self.pool.begin().await?;
        let is_known_key = match key {
            Some(key) => !DB::insert_key(&mut transaction, key, &order.order_id).await?,
            None => false,
        };
        if let Some(key) = key.filter(|_| is_known_key)
            && DB::order_id(&mut transaction, key).await? != order.order_id
        {
            return Ok(Placed::OtherUnderKey);
        }
        if DB::insert_order(&mut transaction, order).await? {
            for queue in &*self.queues {
                let event = event(order, context);
                DB::publish(&mut transaction, &self.outbox, &Outgoing::new(queue.as_str(), event)).await?;
            }
        } else if DB::order(&mut transaction, &order.order_id).await?.as_ref() != Some(order) {
            return Ok(if is_known_key { Placed::OtherUnderKey } else { Placed::OtherUnderId });
        }
        transaction.commit().await?;
        Ok(Placed::Yes)
    }

    /// An order that was placed.
    pub(crate) async fn order(&self, order_id: &str) -> Result<Option<Order>, DatabaseError> {
        Ok(DB::order(&mut *self.pool.acquire().await?, order_id).await?)
    }

    /// The balance of an account, as far as events have been applied to it.
    pub(crate) async fn balance(&self, email: &str) -> Result<Option<i64>, DatabaseError> {
        Ok(DB::balance(&mut *self.pool.acquire().await?, email).await?)
    }
}

fn event(order: &Order, context: &Headers) -> Message {
    Message::builder()
        .headers(context.clone())
        .payload(order.to_json())
        .key(order.order_id.clone())
        .id(order.message_id())
        .header("content-type", "application/json")
        .build()
}

impl<DB: Shop> Clone for Orders<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), outbox: self.outbox.clone(), queues: self.queues.clone() }
    }
}

/// A database that did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct DatabaseError {
    may_pass: bool,
    source: BoxError,
}

impl DatabaseError {
    /// Nobody knows whether it was done.
    pub(crate) fn unanswered(source: impl Into<BoxError>) -> Self {
        Self { may_pass: true, source: source.into() }
    }

    /// What cannot be helped by trying again.
    pub(crate) fn broken(source: impl Into<BoxError>) -> Self {
        Self { may_pass: false, source: source.into() }
    }

    /// Whether the same may succeed later with nothing changed.
    pub(crate) fn may_pass(&self) -> bool {
        self.may_pass
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let may_pass = match &error {
            E::Io(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
            E::Database(error) => error.code().is_some_and(|code| passes(&code)),
            _ => false,
        };
        Self { may_pass, source: error.into() }
    }
}

impl From<SqlError> for DatabaseError {
    fn from(error: SqlError) -> Self {
        Self { may_pass: error.is_unavailable(), source: error.into() }
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.may_pass { "the database does not answer" } else { "the database refuses" })
    }
}

impl std::error::Error for DatabaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// By SQLSTATE: connection, rollback of transactions that collide, resources, a server that starts or stops. Of SQLite, whose
/// codes are numbers: busy, locked, full.
fn passes(code: &str) -> bool {
    match code.parse::<u32>() {
        Ok(number) if code.len() < 5 => matches!(number & 0xff, 5 | 6 | 13),
        _ => ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_and_what_does_not() {
        // busy, busy by a snapshot, full; admin_shutdown, cannot_connect_now, connection_failure, deadlock, no connection left
        for code in ["5", "517", "13", "57P01", "57P03", "08006", "40P01", "53300"] {
            assert!(passes(code), "{code}");
        }
        // error, constraint; undefined_table, insufficient_privilege, query_canceled
        for code in ["1", "2067", "42P01", "42501", "57014"] {
            assert!(!passes(code), "{code}");
        }
    }
}
