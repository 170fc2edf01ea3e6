//! What each command does.

mod dead_letters;
mod inbox;
mod outbox;
mod relay;

use std::process::ExitCode;

use consumer_admin::AdminError;
use tokio_util::sync::CancellationToken;

use super::args::{Cli, Command};

/// More than so many are not changed without a question.
const UNASKED: u64 = 100;
/// Rows in a list where nothing is said: it is in memory.
const LISTED: u64 = 1_000;

pub(crate) async fn run(cli: Cli) -> Result<ExitCode, AdminError> {
    match cli.command {
        Command::DeadLetters(command) => dead_letters::run(command).await,
        Command::Relay(options) => relay::run(options).await,
        Command::Outbox(command) => outbox::run(command).await,
        Command::Inbox(command) => inbox::run(command).await,
        Command::Migrate(options) => relay::migrate(options).await,
    }
}

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process.
fn interrupted() -> CancellationToken {
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        consumer_core::runtime::signal::terminate().await;
        eprintln!("stopping: what is on its way is finished first; again to stop at once");
        stop.cancel();
        consumer_core::runtime::signal::terminate().await;
        std::process::exit(1);
    });
    token
}

/// Where a list ends before the last row.
fn note_the_end(shown: usize, limit: u64) {
    if shown as u64 == limit {
        eprintln!("note: there may be more than these {limit}: --limit has more listed");
    }
}
