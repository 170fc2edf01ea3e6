//! Exactly one effect, with a database of one's own: PostgreSQL or SQLite.
//!
//! - [`InboxLayer`]: the record of a message and its effect in one transaction
//! - [`Outbox`] and [`Relay`]: a message is published if, and only if, the transaction that wrote it has committed
//! - the dedup store in the database, for services without Redis
//! - [`migrate`](migrate()) and [`Tables`]: the tables of all that
//!
//! # The dedup store
//! `PostgresStore` (feature `postgres`) keeps it in a PostgreSQL that is there already, shared by any number of machines.
//! `SqliteStore` (feature `sqlite`) keeps it in an SQLite file: durable without any server, and shared by the processes of
//! one machine.
//!
//! The store guarantees what the protocol in [`consumer_core::dedup::protocol`] says and passes the same conformance suite as the
//! other stores: at-least-once; each key's handler completes once unless a process dies between the side effect and
//! `complete`, or the database cannot be written between the two for longer than what is left of the lease, a handler outlives its lease, an
//! attempt that failed or timed out had its effect all the same, the database is lost, or a duplicate comes after the retention.

mod admin;
mod availability;
mod database;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod dedup;
mod error;
#[cfg(test)]
mod fuzz;
pub mod inbox;
mod migrate;
mod outbox;
pub mod relay;
mod tables;

pub use admin::filter::{OutboxFilter, OutboxState};
pub use admin::inbox::{InboxAdmin, InboxPurge, InboxRecord, InboxStats};
pub use admin::outbox::{OutboxAdmin, OutboxChange, OutboxCount, OutboxErrors, OutboxPurge, OutboxStats};
pub use admin::row::{OutboxMessage, OutboxRow};
pub use database::Database;
#[cfg(feature = "postgres")]
pub use dedup::{PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "sqlite")]
pub use dedup::{SqliteStore, SqliteStoreBuilder};
pub use error::SqlError;
pub use inbox::{InboxLayer, Tx};
pub use migrate::{migrate, migrations_sql};
pub use outbox::Outbox;
pub use relay::{Lag, Relay, RelayReport};
pub use tables::Tables;
