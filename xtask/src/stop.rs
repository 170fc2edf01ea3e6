//! Why a task ended early.

use xtask::servers::ServerError;

/// The one error of the tasks. All kinds end the process; they differ in what is said and in the exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Something went wrong; the text says what, and what to do where that is known. Exit code 1.
    Failed(String),
    /// What was to be checked could not be looked at; the text says why. Exit code 3.
    Unchecked(String),
    /// SIGINT or SIGTERM. Exit code 130.
    Interrupted,
}

impl Stop {
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }
}

impl From<ServerError> for Stop {
    fn from(error: ServerError) -> Self {
        // Its `Debug` has the cause as well.
        Self::Failed(format!("{error:?}"))
    }
}
