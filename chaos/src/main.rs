//! Random faults against real servers and processes: kills, stops, restarts, bad connections, rebalances.
//!
//! Several processes of `orders consume` share a broker and a store, each behind a proxy, while a producer outside publishes.
//! A seed decides the faults. A ledger outside judges by the mail logs: nothing is lost, nothing is repeated but for the
//! reasons that the guarantee names, keys keep their order, nothing is stuck. `cargo xtask chaos` builds and starts it;
//! docs/chaos.md has what was found.

mod consumer;
mod faults;
mod figures;
mod history;
mod ledger;
mod load;
mod plan;
mod random;
mod run;
mod servers;
mod tail;
mod timeline;
mod world;

use std::{
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};

use crate::{
    plan::Plan,
    servers::{BrokerKind, StoreKind},
};

/// Consumers at a time; one more joins now and then.
const CONSUMERS: usize = 3;
/// Of their claims.
const LEASE: Duration = Duration::from_secs(3);
/// Messages that each holds at once.
const IN_FLIGHT: usize = 16;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Breaks a broker, a store and their consumers at random, and judges what came of it.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask chaos")]
struct Args {
    /// What is consumed from
    #[arg(long, value_enum)]
    broker: BrokerKind,
    /// Where ids are remembered
    #[arg(long, value_enum)]
    store: StoreKind,
    /// Faults, each followed by its recovery
    #[arg(long, value_name = "N", default_value_t = 20)]
    cycles: usize,
    /// Decides the faults and the load; random by default, and then printed on stderr
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Whether consumers keep the order of each key; by default odd seeds say so
    #[arg(long, value_enum)]
    ordering: Option<Ordering>,
    /// Where logs and pictures go, by default target/chaos
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The program under test, by default `orders` beside this one
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,
    /// Has each consumer remember for itself alone, so that the judge must find repeated effects
    #[arg(long)]
    broken: bool,
    /// Print the faults of the seed and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ordering {
    None,
    Key,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let plan = Plan::new(seed, args.cycles, args.ordering.map(|ordering| ordering == Ordering::Key));
    if args.dry_run {
        for (nth, cycle) in plan.cycles.iter().enumerate() {
            println!("{:>4}  {}", nth + 1, cycle.fault);
        }
        return ExitCode::SUCCESS;
    }
    match judged(&args, &plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn judged(args: &Args, plan: &Plan) -> Fallible<bool> {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let (broker, store) =
        (name(&|| args.broker.to_possible_value()), name(&|| args.store.to_possible_value()));
    let mut replay = format!(
        "cargo xtask chaos --broker {broker} --store {store} --cycles {} --seed {}",
        args.cycles, plan.seed
    );
    if let Some(ordering) = args.ordering {
        replay.push_str(if ordering == Ordering::Key { " --ordering key" } else { " --ordering none" });
    }
    if args.broken {
        replay.push_str(" --broken");
    }
    eprintln!("{replay}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ending = runtime.block_on(run::run(args, plan, &broker, &store))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    println!("{}", ending.figures);
    if !ending.clean {
        eprint!("{}", ending.violations);
        eprintln!("{} has the logs, timeline.svg is the picture. Again: {replay}", ending.folder.display());
    }
    Ok(ending.clean)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
