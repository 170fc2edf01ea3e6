//! The ways back of a failed message, with a SIGKILL at each step of each.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod child;
mod deferred;
mod fuse;
mod redriven;
mod same_id;
mod world;
