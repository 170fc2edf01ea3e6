//! Idempotent consumers: services that consume messages and must not repeat an effect when a message comes again.

pub use consumer_core::*;

#[cfg(feature = "kafka")]
pub use consumer_kafka as kafka;
#[cfg(feature = "redis")]
pub use dedup_redis as redis;

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "kafka", feature = "redis"))]
#[doc = include_str!("../../README.md")]
struct Readme;
