//! Long tables go through a pager, as `git log` does.

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::{Command, Stdio},
};

/// Prints to stdout, through `$PAGER` (`less` by default) if that is a terminal.
pub(crate) fn print(text: &str, no_pager: bool) -> io::Result<()> {
    if no_pager || !io::stdout().is_terminal() || !paged(text) {
        let mut stdout = io::stdout().lock();
        // A reader that has seen enough, such as `head`, is no error.
        return match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        };
    }
    Ok(())
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
