//! Why the program ends early, and with which exit code.

use std::{error::Error, fmt, process::ExitCode};

/// An end before the work is done.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Found without the network: usage, URL, missing feature.
    Usage(String),
    /// Anything else: a server that cannot be reached or refuses.
    Failed(String),
}

impl Stop {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// With the causes of an error, outermost first.
    pub(crate) fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::Failed(chain(error))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(message) | Self::Failed(message)) = self;
        f.write_str(message)
    }
}

/// The messages of an error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.ends_with(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text
}
