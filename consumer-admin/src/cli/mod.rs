//! Commands, one file each for what they print.

mod args;
mod ask;
mod commands;
#[cfg(test)]
mod fuzz;
mod json;
mod pager;
mod progress;
mod show;
mod table;
mod text;

use std::{io::IsTerminal, process::ExitCode};

use tracing_subscriber::EnvFilter;

pub(crate) use args::Cli;
use consumer_admin::AdminError;

/// Exit code 0 when all was done, 2 for what is found without the network, 1 otherwise.
pub(crate) fn run(cli: Cli) -> ExitCode {
    start_logs();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| AdminError::new("no runtime can be started").with_source(error))
        .and_then(|runtime| {
            let done = runtime.block_on(commands::run(cli));
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", text::plain(&error.chain()));
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

/// To stderr. The driver for RabbitMQ calls much an error that is none, and logs whole messages.
fn start_logs() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,lapin=off,consumer_kafka=warn"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}
