//! What the adapters share between threads, under a scheduler that tries one order after another.
//!
//! The tests take the adapters' own files in, with the scheduler's primitives in place of the standard library's, so no
//! driver has to be built for them. Of `consumer-core` it is the crate itself that is built so. All of it is under
//! `--cfg shuttle` and run by `cargo xtask concurrency`.
