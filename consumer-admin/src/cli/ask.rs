//! Questions before what cannot be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use consumer_admin::AdminError;

/// Asks on the terminal; without one the answer is an error that says how to do without.
pub(crate) fn go_on(question: &str) -> Result<bool, AdminError> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(AdminError::new(format!("{question} There is no terminal to ask on: say --yes")));
    }
    eprint!("{question} [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| AdminError::new("no answer can be read").with_source(error))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
