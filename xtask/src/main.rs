//! `cargo xtask`: one command for each thing a developer, or the CI, wants to have done.

mod bench;
mod cargo;
mod chaos;
mod concurrency;
mod deny;
mod fuzz;
mod interrupt;
mod machine;
mod mutants;
mod promises;
mod prove;
mod services;
mod stop;
mod test;

use clap::{Args, Parser, Subcommand};
use interrupt::Interrupt;
use std::{ffi::OsString, process::ExitCode};
use stop::Stop;

/// Development tasks of this workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make the machine ready and run formatter, lints, docs and every test, on servers of its own
    Test(test::Selection),
    /// Start Kafka, RabbitMQ, Redis and PostgreSQL on free loopback ports, print their URLs, and stay until Ctrl-C
    Services,
    /// Run the benches on servers of their own and print their table
    Bench(BenchArgs),
    /// Consume for half an hour at half of the maximum, and look whether anything grows
    Endurance(EnduranceArgs),
    /// Break each promise in a copy of the workspace, and expect its test to fail
    Prove(prove::Selection),
    /// Run the property tests of parsers for longer, and count the inputs
    Fuzz(fuzz::FuzzArgs),
    /// Look whether a crate of the build has a known vulnerability; exit code 3 if that cannot be found out
    Audit,
    /// Break servers, connections and consumers at random, and judge what came of it (`--help` has the options)
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// Try the orders in which threads can get in each other's way, under a scheduler of its own
    Concurrency(concurrency::Schedules),
    /// Break the code in one place after another and look whether a test notices
    Mutants(mutants::Selection),
    /// Install what this machine lacks for the tasks above, and do nothing else
    Install,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Further arguments, handed to the benches as they are
    #[arg(last = true)]
    rest: Vec<OsString>,
}

#[derive(Debug, Args)]
struct EnduranceArgs {
    /// On which broker
    #[arg(long, value_name = "kafka|amqp")]
    broker: String,
    /// For so many minutes
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Interrupt::install().and_then(|interrupt| match cli.task {
        Task::Test(selection) => test::run(&selection, &interrupt),
        Task::Services => services::run(&interrupt),
        Task::Bench(args) => bench::run(args.json, &args.rest, &interrupt),
        Task::Endurance(EnduranceArgs { broker, minutes }) => {
            let rest = ["--endurance", &broker, "--minutes", &minutes.to_string()].map(OsString::from);
            bench::run(false, &rest, &interrupt)
        }
        Task::Prove(selection) => prove::run(&selection, &interrupt),
        Task::Fuzz(args) => fuzz::run(&args, &interrupt),
        Task::Chaos { rest } => chaos::run(&rest, &interrupt),
        Task::Audit => deny::audit(&interrupt),
        Task::Concurrency(schedules) => concurrency::run(&schedules, &interrupt),
        Task::Mutants(selection) => mutants::run(&selection, &interrupt),
        Task::Install => machine::prepare(&machine::EVERYTHING, &interrupt)
            .and_then(|()| deny::program(&interrupt).map(drop)),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(why)) => {
            eprintln!("\nxtask: {why}");
            ExitCode::FAILURE
        }
        Err(Stop::Unchecked(why)) => {
            eprintln!("\nxtask: {why}");
            ExitCode::from(3)
        }
        Err(Stop::Interrupted) => {
            // Those of tests that were stopped half way.
            xtask::servers::remove_abandoned();
            eprintln!("\nxtask: interrupted; everything it started is stopped");
            ExitCode::from(130)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_chaos_are_handed_on_even_help() {
        let cli = Cli::try_parse_from(["xtask", "chaos", "--broker", "kafka", "--help"]).unwrap();
        let Task::Chaos { rest } = cli.task else { panic!("{cli:?}") };
        assert_eq!(rest, ["--broker", "kafka", "--help"]);
    }

    #[test]
    fn steps_are_chosen_by_name() {
        let cli = Cli::try_parse_from(["xtask", "test", "--only", "format", "--only", "lint"]).unwrap();
        let Task::Test(selection) = cli.task else { panic!("{cli:?}") };
        assert!(selection.includes(test::Step::Lint));
        assert!(!selection.includes(test::Step::Tests));
        assert!(Cli::try_parse_from(["xtask", "test", "--only", "nonsense"]).is_err());
    }
}
