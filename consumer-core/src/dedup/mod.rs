//! Deduplication: claim → handler → complete → ack.

mod ask;
mod gate;
mod key;
mod layer;
mod meter;
pub mod parking;
pub mod protocol;
mod registry;
mod renewal;
mod service;
mod store;
#[cfg(test)]
mod tests;

pub use gate::Gate;
pub use key::{IdempotencyKey, MissingKey};
pub use layer::{DedupLayer, Fingerprint, OnOutage};
pub use parking::{ParkOperation, ParkReply, ParkRequest};
pub(crate) use registry::{ClaimHandle, HeldClaim, Registry, SharedClaim};
pub use service::Dedup;
pub use store::{
    Claim, ClaimReply, ClaimRequest, DedupStore, DynStore, Mode, Owner, RenewRequest, Renewal, Resolution,
    Resolved, StoreError, StoreKey, fingerprint,
};
