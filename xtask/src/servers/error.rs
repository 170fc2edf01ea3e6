//! The one error of this module.

use std::{error::Error, fmt, fs, io, path::Path};

/// How many lines of a server's log an error shows.
const LOG_LINES: usize = 25;

/// Why a server could not be started or talked to.
///
/// `Display` names the server and the step; the end of the server's log follows on further lines where there is one.
pub struct ServerError {
    kind: Kind,
    what: String,
    log: String,
    source: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Missing,
    Timeout,
    Clash,
    Failed,
}

impl ServerError {
    /// Whether a program that is needed is not installed; `cargo xtask install` helps.
    pub fn is_missing(&self) -> bool {
        self.kind == Kind::Missing
    }

    /// Whether the server did not get ready in time.
    pub fn is_timeout(&self) -> bool {
        self.kind == Kind::Timeout
    }

    /// Whether another process had taken the port.
    pub(super) fn is_clash(&self) -> bool {
        self.kind == Kind::Clash
    }

    pub(super) fn failed(what: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, what: what.into(), log: String::new(), source: None }
    }

    pub(super) fn timeout(what: impl Into<String>) -> Self {
        Self { kind: Kind::Timeout, ..Self::failed(what) }
    }

    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = if source.kind() == io::ErrorKind::NotFound { Kind::Missing } else { Kind::Failed };
        Self { kind, source: Some(source), ..Self::failed(what) }
    }

    /// Adds the end of a server's log, and tells by it whether the port was taken.
    pub(super) fn with_log(self, path: &Path) -> Self {
        self.with_output(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
    }

    pub(super) fn with_output(mut self, output: &str) -> Self {
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        self.log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        // The second is how Erlang says it.
        let taken = ["Address already in use", "eaddrinuse"].iter().any(|words| output.contains(words));
        if self.kind == Kind::Failed && taken {
            self.kind = Kind::Clash;
        }
        self
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.log.is_empty() {
            write!(f, "; its last lines:\n{}", self.log)?;
        }
        Ok(())
    }
}

/// Like `Display`, with the cause: tests print errors by `Debug`.
impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for ServerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_only_the_end_of_a_log() {
        let log: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let shown = ServerError::failed("x did not start").with_output(&log).to_string();
        assert!(shown.starts_with("x did not start; its last lines:\nline 75\n"), "{shown}");
        assert!(shown.ends_with("line 99"), "{shown}");
    }

    #[test]
    fn a_taken_port_is_told_apart() {
        let error = ServerError::failed("x").with_output("bind: Address already in use");
        assert!(error.is_clash());
        let error =
            ServerError::failed("x").with_output("{listen_error,{acceptor,{127,0,0,1},1},eaddrinuse}");
        assert!(error.is_clash());
        assert!(!ServerError::failed("x").with_output("out of memory").is_clash());
    }

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        let cause = std::process::Command::new("no-such-program-here").spawn().unwrap_err();
        assert!(ServerError::io("x", cause).is_missing());
    }
}
