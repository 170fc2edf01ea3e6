//! What naive consumers get wrong, on the paused clock: one test for each row of docs/failure-modes.md that the core
//! can show. Each plays a scenario with our stack and, where it can show the failure at all, with a naive one, which
//! has to fail.
//!
//! A process is a consumer with a nonce, a gate and a line to the shared store of its own. Killed, its line is cut:
//! nothing that its futures still do while they are dropped reaches the store or the broker.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod claims;
mod crashes;
mod dead_letters;
mod failures;
mod order;
mod parking;
mod severed;
mod stopping;
mod world;
