//! What every implementation of a trait has to do.
//!
//! Each rule is one public async function; `run_all` runs them all. A rule that is broken panics and says which. Run
//! them against a store or broker of your own by implementing [`store::StoreUnderTest`] or [`BrokerUnderTest`].
//!
//! The rules of brokers are listed in [`source::RULES`] and [`publisher::RULES`]. One that needs a capability the broker
//! does not have is reported as such. Where a document says which rules hold for a broker, [`check_column`] holds it to
//! that.
//!
//! ```
//! use consumer_core::memory::MemoryStore;
//! use consumer_testing::conformance::store::{self, StoreUnderTest};
//!
//! struct Memory(MemoryStore);
//!
//! impl StoreUnderTest for Memory {
//!     type Store = MemoryStore;
//!     async fn store(&self) -> MemoryStore {
//!         self.0.clone()
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! store::run_all(&Memory(MemoryStore::new())).await;
//! # });
//! ```

mod broker;
mod capabilities;
mod document;
pub mod publisher;
mod rules;
pub mod source;
pub mod store;

pub use broker::BrokerUnderTest;
pub use capabilities::{Capabilities, Capability};
pub use document::check_column;
pub use rules::{Rule, RulesReport};
