//! The dedup store of `consumer-core` in a database of one's own: for services without Redis.
//!
//! [`SqliteStore`] keeps it in an SQLite file. It is durable without any server, and shared by the processes of one machine.
//!
//! It guarantees what the protocol in [`consumer_core::dedup::protocol`] says and passes the same conformance suite as the
//! other stores: at-least-once; each key's handler completes once unless a process dies between the side effect and
//! `complete`, or the file cannot be written between the two for longer than the lease, a handler outlives its lease, an
//! attempt that failed or timed out had its effect all the same, the file is lost, or a duplicate comes after the retention.

mod database;
mod error;
pub mod inbox;
mod migrate;
mod outbox;
pub mod relay;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tables;

pub use database::Database;
pub use error::SqlError;
pub use inbox::{InboxLayer, Tx};
pub use migrate::{migrate, migrations_sql};
pub use outbox::Outbox;
pub use relay::{Lag, Relay, RelayReport};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteStoreBuilder};
pub use tables::Tables;
