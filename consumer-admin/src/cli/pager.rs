//! Long tables go through a pager, as `git log` does.

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::{Command, Stdio},
};

use consumer_admin::AdminError;

/// Writes to stdout. A reader that has seen enough, such as `head`, ends the program: whatever was read from a queue goes
/// back to it when we are gone.
pub(crate) fn out(text: &str) -> Result<(), AdminError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| AdminError::new("stdout cannot be written").with_source(error)),
    }
}

/// Prints to stdout, through `$PAGER` (`less` by default) if that is a terminal.
pub(crate) fn print(text: &str, no_pager: bool) -> Result<(), AdminError> {
    if !no_pager && io::stdout().is_terminal() && paged(text) {
        return Ok(());
    }
    out(text)
}

/// Whether a pager has shown it.
fn paged(text: &str) -> bool {
    let pager = env::var("PAGER").ok().filter(|pager| !pager.is_empty()).unwrap_or_else(|| "less".to_owned());
    let mut words = pager.split_whitespace();
    let Some(program) = words.next() else { return false };
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped());
    if env::var_os("LESS").is_none() {
        // Short output is printed and over; colours are not interpreted.
        command.env("LESS", "FSX");
    }
    let Ok(mut child) = command.spawn() else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait().is_ok()
}
