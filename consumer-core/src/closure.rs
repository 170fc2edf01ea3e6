//! Closures of the user that run outside of the layer that catches panics.
//!
//! A panic there would leave the stack, and the message would be presented again without end.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{Failure, layers::catch_panic::Panicked};

/// Calls a closure.
///
/// # Errors
/// When it panics: for this message it would do so again, so the failure is permanent.
pub(crate) fn call<T>(what: &'static str, closure: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(closure)).map_err(|payload| {
        Failure::permanent(ClosurePanicked { what, panic: Panicked::from_payload(payload) })
    })
}

#[derive(Debug)]
struct ClosurePanicked {
    what: &'static str,
    panic: Panicked,
}

impl fmt::Display for ClosurePanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the closure for {}", self.what)
    }
}

impl std::error::Error for ClosurePanicked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.panic)
    }
}
