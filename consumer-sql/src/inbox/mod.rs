//! The transactional inbox: record and effect of a message in one transaction.
//!
//! # Why
//! A dedup store beside the database leaves a gap: the process dies after the effect is committed and before that is
//! recorded, and the effect happens again. Where the effect is in a database, the record can be in the same transaction.
//!
//! # What it guarantees
//! *Effects inside the transaction happen exactly once per (consumer, key) within the retention; calls to other systems are
//! at-least-once.*
//!
//! - The layer opens a transaction, records (consumer, key) in it first, and hands it to the handler as the argument
//!   [`Tx`]. When the handler has succeeded it commits, else it rolls back record and effect together: whatever dies when.
//! - A message whose record is there runs nothing and is a duplicate. One that comes while the first is at work waits for
//!   what becomes of it: after a commit it is a duplicate, after a rollback it is its turn.
//! - A known key with another payload is a conflict, and never acknowledged in silence.
//! - After a commit whose answer is lost the record is looked for on another connection: there, the message is processed. Else,
//!   or where there is no such connection, it is a transient failure, and the next attempt finds out.
//! - A handler that swallows the error of a statement and succeeds is no success on PostgreSQL, whose COMMIT then rolls
//!   back without an error: it is a transient failure.
//!
//! A handler returns every error of its [`Tx`]: a savepoint that fails to begin, or is dropped while it begins, ends the
//! transaction under it.
//!
//! What it does not guarantee: anything outside of the transaction. A handler that writes by another connection, or calls
//! another system, does that at least once.
//!
//! # How to notice a handler that does not use it
//! The layer logs a warning at the first message whose handler succeeded without having taken its [`Tx`], and counts each
//! in the metric `consumer_inbox_unused_total`. A handler that takes it and executes its statements on the pool all the
//! same is not noticed: give it no pool.
//!
//! # Where it goes
//! Inside the concurrency limit, which bounds the connections that are held, and outside the timeout, which so cannot drop
//! a commit half way: there [`Pipeline`](consumer_core::Pipeline) puts it. There is one transaction for each attempt, so the
//! retry layer is outside: a later attempt inside the same transaction is refused. Of outcomes only
//! [`Processed`](consumer_core::Outcome::Processed) is committed: with any other a layer inside has settled what its handler
//! did not do, such as a dead letter layer, and the transaction is rolled back with the record, so that a redriven copy runs.
//! A dedup layer outside is not needed; what it adds are attempts that are counted over processes, and messages that kill the
//! process found out.
//!
//! While there is no connection to be had, because the server is away or the pool is empty, or nothing can be written,
//! because it is a standby or its disk is full, messages wait and count no attempt, and the source is paused. A record that
//! waits for another transaction longer than a time limit allows (`lock_timeout`, `statement_timeout`), or clashes with it, is
//! written again after a pause, which is no attempt either. A time-out of the handler leaves a statement behind that the
//! server still executes: PostgreSQL's `statement_timeout` ends it.
//!
//! SQLite lets one transaction write at a time: the handlers of a layer run one after another, in turn. Other writers of the
//! file, those of another layer or process, wait for as long as their `busy_timeout` says. SQLite does not queue them: beside a
//! process that writes without a pause it may take seconds.
//!
//! # Many messages in one transaction
//! [`InboxLayer::batch`] pays the commit once for all messages that are in the layer at the same time. Each keeps its own
//! outcome, by a savepoint; their handlers run one after another.
//!
//! # Example
//! ```
//! use consumer_core::{Failure, Message, Outcome, handler::{Json, handler}};
//! use consumer_sql::{InboxLayer, Tables, Tx, migrate};
//! use serde::Deserialize;
//! use sqlx::Sqlite;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//!
//! #[derive(Deserialize)]
//! struct Payment { account: String, amount: i64 }
//!
//! async fn book(Json(payment): Json<Payment>, mut tx: Tx<Sqlite>) -> Result<(), Failure> {
//!     sqlx::query("UPDATE accounts SET balance = balance + ? WHERE name = ?")
//!         .bind(payment.amount)
//!         .bind(payment.account)
//!         .execute(&mut *tx)
//!         .await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! # let folder = tempfile::tempdir()?;
//! # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("bank.db")).create_if_missing(true);
//! # let pool = sqlx::SqlitePool::connect_with(options).await?;
//! migrate::<Sqlite>(&mut *pool.acquire().await?, &Tables::new()).await?;
//! # sqlx::raw_sql("CREATE TABLE accounts (name TEXT, balance INTEGER); INSERT INTO accounts VALUES ('ann', 0)").execute(&pool).await?;
//! let mut stack = ServiceBuilder::new().layer(InboxLayer::new(pool.clone(), "billing")).service(handler(book));
//!
//! let message = Message::builder().id("p-17").payload(r#"{"account":"ann","amount":5}"#).build();
//! assert_eq!(stack.ready().await?.call(message.clone()).await?, Outcome::Processed);
//! assert_eq!(stack.ready().await?.call(message).await?, Outcome::Duplicate);
//! let balance: i64 = sqlx::query_scalar("SELECT balance FROM accounts").fetch_one(&pool).await?;
//! assert_eq!(balance, 5);
//! # Ok(())
//! # }
//! ```

mod batch;
mod extract;
mod failures;
mod layer;
mod meter;
#[cfg(feature = "postgres")]
mod postgres;
mod retention;
mod service;
#[cfg(feature = "sqlite")]
mod sqlite;
mod statements;
pub(crate) mod transaction;

pub use extract::Tx;
pub use layer::InboxLayer;
pub use service::Inbox;
#[doc(hidden)]
pub use statements::Statements;
