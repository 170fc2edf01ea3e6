//! The program on real servers, as `cargo xtask test` runs it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]
#![cfg(all(feature = "amqp", feature = "kafka", feature = "redis"))]

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod crashes;
mod delays;
mod outages;
mod queue;
mod readme;
mod redrive;
mod secrets;
mod start;
mod stopping;
mod topic;
