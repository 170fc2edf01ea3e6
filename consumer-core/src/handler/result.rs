//! What a handler returns.

use crate::{BoxError, Failure, Outcome};

/// What an async function can return to be a handler.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "wrong return type of a handler",
    note = "a handler returns `()`, `Result<(), E>` or `Result<Outcome, E>`, where `E` is `Failure` or any error that is `Send + Sync`"
)]
pub trait IntoResult {
    /// The outcome, or the failure.
    ///
    /// # Errors
    /// With the handler's error: transient, unless it says otherwise.
    fn into_result(self) -> Result<Outcome, Failure>;
}

impl IntoResult for () {
    fn into_result(self) -> Result<Outcome, Failure> {
        Ok(Outcome::Processed)
    }
}

impl<T: Into<Outcome>, E: Into<BoxError>> IntoResult for Result<T, E> {
    fn into_result(self) -> Result<Outcome, Failure> {
        self.map(Into::into).map_err(Failure::from_error)
    }
}
