//! Logs go to stderr; `RUST_LOG` says which.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `default` is what is shown where `RUST_LOG` says nothing.
pub(crate) fn start(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}
