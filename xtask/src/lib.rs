//! Development tasks and the servers that tests run against.
//!
//! Tests use [`servers`] as a dev-dependency; `cargo xtask test`, `services` and `bench` use the same code. Nothing
//! here is part of what users of the framework depend on.

pub mod servers;
