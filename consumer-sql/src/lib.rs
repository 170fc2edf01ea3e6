//! A database of one's own as the inbox of a consumer, or as its dedup store: for services without Redis.
//!
//! [`InboxLayer`] (PostgreSQL, SQLite) puts the record of a message and its effect into one transaction: effects inside it
//! happen exactly once per (consumer, key) within the retention; calls to other systems are at-least-once. See [`inbox`].
//!
//! [`SqliteStore`] keeps it in an SQLite file. It is durable without any server, and shared by the processes of one machine.
//!
//! The store guarantees what the protocol in [`consumer_core::dedup::protocol`] says and passes the same conformance suite as the
//! other stores: at-least-once; each key's handler completes once unless a process dies between the side effect and
//! `complete`, or the file cannot be written between the two for longer than the lease, a handler outlives its lease, an
//! attempt that failed or timed out had its effect all the same, the file is lost, or a duplicate comes after the retention.

mod error;
pub mod inbox;
mod migrate;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tables;

pub use error::SqlError;
pub use inbox::{InboxLayer, Tx};
pub use migrate::{Database, migrate, migrations_sql};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteStoreBuilder};
pub use tables::Tables;
