//! What every implementation of a trait has to do.
//!
//! Each rule is one public async function; `run_all` runs them all. A rule that is broken panics and says which. Run
//! them against a store or broker of your own by implementing [`store::StoreUnderTest`] or [`BrokerUnderTest`].
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
pub mod publisher;
pub mod source;
pub mod store;

pub use broker::{BrokerUnderTest, Capabilities};
