//! What an operator does, as library calls. With dead letters: read, count, send back, throw away, carry elsewhere. With the
//! tables of `consumer-sql`: create them, publish what is in an outbox, look at outbox and inbox, requeue, purge.
//!
//! The binary `consumer-admin` is the command line over them; `consumer-admin --help` explains it.
//!
//! - [`Broker`] is Kafka or RabbitMQ by URL; anything that implements
//!   [`DeadLetters`](consumer_core::dead_letters::DeadLetters) will do.
//! - [`Filter`] says which letters are meant.
//! - [`redrive`], [`discard`], [`export`] and [`import`] do the work, [`Stats`] counts.
//! - [`Database`] is a PostgreSQL or an SQLite file by URL, with its tables, and all that is done there.
//!
//! What is redriven or discarded is settled only after the broker has confirmed the copy, or the file is on the disk. All
//! of it can be interrupted at any moment and started again: a letter that was published and not yet settled is published
//! once more, with the same `redrive-count`, and the dedup store runs a key once for each count.
//!
//! ```
//! use consumer_admin::{Filter, Redrive, redrive};
//! use consumer_core::{DynPublisher, Message, Outgoing, Publisher, dead_letters::DeadLetters, memory::MemoryBroker};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders", 1);
//! broker.create_topic("orders.dead", 1);
//! let dead = Message::builder().payload("o-17").id("1").header("dead-letter-reason", "permanent");
//! let dead = dead.header("dead-letter-source", "memory").header("dead-letter-topic", "orders").build();
//! broker.publisher().publish(Outgoing::new("orders.dead", dead)).await?;
//!
//! let letters = broker.dead_letters("orders.dead").open().await?;
//! let publisher = DynPublisher::new(broker.publisher());
//! let filter = Filter::default().reason("permanent");
//! let report = redrive(letters, publisher, &filter, &Redrive::default(), |_| {}).await?;
//! assert_eq!(report.redriven, 1);
//! assert_eq!(broker.records("orders")[0].headers().get_str("redrive-count"), Some("1"));
//! assert!(broker.records("orders.dead").is_empty());
//! # Ok(())
//! # }
//! ```

mod broker;
mod database;
mod dead_letters;
mod error;
#[cfg(test)]
mod fuzz;
pub mod terminal;

pub use broker::Broker;
pub use consumer_sql::{
    InboxPurge, InboxRecord, InboxStats, Lag, OutboxChange, OutboxCount, OutboxErrors, OutboxFilter,
    OutboxMessage, OutboxPurge, OutboxRow, OutboxState, OutboxStats, RelayReport,
};
pub use database::{Database, RelayOptions};
pub use dead_letters::discard::{Discard, Discarded, discard};
pub use dead_letters::exported::{ExportedLetter, export};
pub use dead_letters::filter::Filter;
pub use dead_letters::import::{Import, Imported, import};
pub use dead_letters::redrive::{Redrive, Redriven, redrive};
pub use dead_letters::stats::{Group, Stats};
pub use error::AdminError;
