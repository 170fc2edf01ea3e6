//! The relay on both databases, to the broker in memory, and what an operator does beside it.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod database;
mod inbox_admin;
mod killed;
mod naive;
mod order;
mod outbox_admin;
mod refused;
mod start;
mod stop;

use std::time::Duration;

use consumer_core::{Message, Outgoing, memory::MemoryBroker};
use consumer_sql::{Outbox, Relay, RelayReport};
use database::TestDatabase;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test on SQLite, and on PostgreSQL where there are servers.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::database::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs servers: cargo xtask test"]
            async fn $name() {
                super::$name(crate::database::postgres().await).await;
            })*
        }
    };
}
pub(crate) use on_both;

pub(crate) fn broker() -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 4);
    broker
}

pub(crate) fn message(id: impl Into<String>, key: &str) -> Outgoing {
    let id = id.into();
    Outgoing::new("t", Message::builder().payload(id.clone()).id(id).key(key.to_owned()).build())
}

/// Writes messages, each in a transaction of its own.
pub(crate) async fn write<D: TestDatabase>(database: &D, messages: impl IntoIterator<Item = Outgoing>) {
    let outbox = Outbox::in_tables(database.tables());
    for message in messages {
        database.write(&outbox, &message).await;
    }
}

pub(crate) fn relay<D: TestDatabase>(
    database: &D,
    broker: &MemoryBroker,
) -> Relay<D::Database, consumer_core::memory::MemoryPublisher> {
    Relay::new(database.pool().clone(), broker.publisher())
        .tables(database.tables().clone())
        .poll(Duration::from_millis(20))
        .backoff(Duration::from_millis(20), Duration::from_millis(100))
}

/// Until nothing is left.
pub(crate) async fn relayed<D: TestDatabase>(database: &D, broker: &MemoryBroker) -> RelayReport {
    let run = relay(database, broker).until_empty().run(std::future::pending());
    tokio::time::timeout(LIMIT, run).await.expect("the outbox is emptied").unwrap()
}

/// The payloads in a topic of the broker, by partition in their order.
pub(crate) fn published(broker: &MemoryBroker, topic: &str) -> Vec<String> {
    let messages = broker.records(topic);
    messages.iter().map(|message| String::from_utf8(message.payload().to_vec()).unwrap()).collect()
}
