//! Test kit for consumers, and for those who write a store, a source or a publisher of their own.
//!
//! - [`conformance`]: what every dedup store, source and publisher has to do, as functions that panic with the rule
//!   that was broken.
//! - [`model`]: random sequences of receiving, crashing, expiring and losing replies, against the protocol and
//!   against invariants written down independently of it.
//! - [`drive`]: a source without the runtime, as async calls.
//! - [`readiness`]: whether a layer keeps tower's readiness contract.
//! - [`proxy`]: a TCP proxy that cuts, hangs, delays and throttles what goes through it.
//! - [`handlers`]: handlers that record, fail and panic.
//! - [`naive`]: the consumer everybody writes first, as a counter-example.

pub mod conformance;
pub mod drive;
pub mod handlers;
pub mod model;
pub mod naive;
pub mod proxy;
pub mod readiness;

/// A name that no other test uses, in this process or another, for topics, groups and scopes.
pub fn unique(prefix: &str) -> String {
    use std::{
        hash::{BuildHasher, RandomState},
        sync::atomic::{AtomicU64, Ordering},
    };
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one((std::process::id(), count));
    format!("{prefix}-{random:016x}")
}
