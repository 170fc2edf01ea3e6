//! The inbox on both databases: what happens once, and what leaves no trace.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod bank;

mod misuse;
mod once;
