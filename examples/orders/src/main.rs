//! Confirms each order by one mail, however often the order is delivered: the example that the README starts with.
//!
//! `orders` alone is a demo in memory. `orders produce` and `orders consume` do the same on real servers; see
//! `orders --help`.

#[cfg(feature = "amqp")]
mod amqp;
mod backend;
mod cli;
mod consume;
mod demo;
mod handler;
#[cfg(feature = "kafka")]
mod kafka;
mod logs;
mod mail;
mod order;
mod plan;
mod produce;
mod report;
mod stack;
mod stop;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use stop::Stop;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => demo::run(),
        Some(Command::Consume(options)) => consume::run(options),
        Some(Command::Produce(options)) => produce::run(&options),
    };
    done.map_or_else(
        |stop| {
            eprintln!("error: {stop}");
            stop.exit_code()
        },
        |()| ExitCode::SUCCESS,
    )
}

/// A runtime that is not waited for at its end: what is left then only holds connections.
fn block_on<T>(work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::from_error(&error))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
