//! A broker and a dedup store in this process: for tests, examples and trying things out.
//!
//! Both behave as the real ones do and pass the same conformance suites (crate `consumer-testing`), follow tokio's
//! clock, paused or not, and can be told to misbehave: lost replies, outages, crashes, duplicates, refused publishes.
//! What they hold is gone with the process.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use consumer_core::{Message, Outgoing, Publisher, memory::MemoryBroker};
//!
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders.placed", 4);
//! broker.publisher().publish(Outgoing::new("orders.placed", Message::new("{}"))).await?;
//! assert_eq!(broker.records("orders.placed").len(), 1);
//! # Ok(())
//! # }
//! ```

mod assignment;
mod broker;
mod clock;
mod dead_letters;
mod faults;
mod group;
mod records;
mod source;
mod state;
mod store;
mod swept;

#[cfg(test)]
mod tests;

pub use broker::{MemoryBroker, MemoryPublisher};
pub use dead_letters::MemoryDeadLetters;
pub use faults::PublishFault;
pub use source::{CrashHandle, MemorySource};
pub use store::{MemoryStore, StoreStats};
