//! `cargo xtask test`: everything that must hold before a change goes in.

use crate::{
    cargo, chaos, concurrency, deny, interrupt::Interrupt, machine, promises, services::Services, stop::Stop,
};
use clap::{Args, ValueEnum};
use std::{fs, path::Path, time::Instant};
use xtask::servers::{KAFKA_VARIABLE, POSTGRES_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE};

/// Which steps to do; all of them by default.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Do this step only (may be repeated)
    #[arg(long, value_name = "STEP", conflicts_with = "skip")]
    only: Vec<Step>,
    /// Leave this step out (may be repeated)
    #[arg(long, value_name = "STEP")]
    skip: Vec<Step>,
}

impl Selection {
    pub(crate) fn includes(&self, step: Step) -> bool {
        if self.only.is_empty() { !self.skip.contains(&step) } else { self.only.contains(&step) }
    }
}

/// The steps, in their order: what is quick and often wrong comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Look what this machine lacks, and install it where that is possible
    Machine,
    /// Formatter
    Format,
    /// Lints of all code, warnings are errors
    Lint,
    /// API documentation, warnings are errors
    Docs,
    /// What is in the dependency tree of the core
    Tree,
    /// Licenses, banned crates and sources of all that is built in, by `cargo deny`
    Deny,
    /// The examples with each set of features
    Examples,
    /// The orders in which threads can get in each other's way, under a scheduler of its own
    Concurrency,
    /// Unit, doc, integration and example tests, with Kafka, RabbitMQ, Redis and PostgreSQL running
    Tests,
    /// A few random faults for each broker with each store, judged from outside
    Chaos,
}

/// The examples that can be built with more or fewer brokers, stores and databases, and what to build them with.
const EXAMPLES: [(&str, &str); 14] = [
    ("orders", ""),
    ("orders", "sqlite"),
    ("orders", "postgres"),
    ("orders", "kafka,redis"),
    ("orders", "amqp,redis"),
    ("checkout", ""),
    ("checkout", "kafka"),
    ("checkout", "amqp"),
    ("checkout", "postgres"),
    ("checkout", "kafka,postgres"),
    ("checkout", "amqp,postgres"),
    ("fan-out", ""),
    ("fan-out", "kafka"),
    ("fan-out", "amqp"),
];

const TEST_THREADS: &str = "4";

/// What the core must not depend on.
const FOREIGN_TO_CORE: [&str; 5] = ["rdkafka", "rdkafka-sys", "redis", "lapin", "sqlx"];

/// Does the chosen steps and stops at the first that fails.
pub(crate) fn run(selection: &Selection, interrupt: &Interrupt) -> Result<(), Stop> {
    let begin = Instant::now();
    for &step in Step::value_variants().iter().filter(|step| selection.includes(**step)) {
        interrupt.check()?;
        let name = step.name();
        eprintln!("\n==> {name} (at {:.0} s)", begin.elapsed().as_secs_f64());
        let step_begin = Instant::now();
        step.run(interrupt).map_err(|stop| match stop {
            Stop::Failed(why) => Stop::failed(format!("step `{name}` failed: {why}")),
            stop => stop,
        })?;
        eprintln!("    {name}: ok, {:.1} s", step_begin.elapsed().as_secs_f64());
    }
    eprintln!("\nAll steps passed, in {:.0} s.", begin.elapsed().as_secs_f64());
    Ok(())
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, interrupt: &Interrupt) -> Result<(), Stop> {
        match self {
            Self::Machine => machine::prepare(&machine::EVERYTHING, interrupt)
                .and_then(|()| deny::program(interrupt).map(drop)),
            Self::Format => {
                component("fmt", "rustfmt")?;
                cargo::run(cargo::cargo().args(["fmt", "--all", "--check"]), interrupt)
            }
            Self::Lint => {
                component("clippy", "clippy")?;
                let features = cargo::all_features()?;
                let lint = ["clippy", "--workspace", "--all-targets", "--features", &features];
                cargo::run(cargo::cargo().args(lint).args(["--", "-D", "warnings"]), interrupt)
            }
            Self::Docs => {
                let features = cargo::all_features()?;
                let docs = ["doc", "--workspace", "--no-deps", "--features", &features];
                cargo::run(cargo::cargo().args(docs).env("RUSTDOCFLAGS", "-D warnings"), interrupt)
            }
            Self::Tree => tree(),
            Self::Deny => deny::check(interrupt),
            Self::Examples => {
                for (example, features) in EXAMPLES {
                    let check = ["check", "--package", example, "--features", features];
                    cargo::run(cargo::cargo().args(check), interrupt)?;
                }
                Ok(())
            }
            Self::Concurrency => concurrency::run(&concurrency::Schedules::default(), interrupt),
            Self::Tests => tests(interrupt),
            Self::Chaos => chaos::step(interrupt),
        }
    }
}

fn component(subcommand: &str, component: &str) -> Result<(), Stop> {
    cargo::output(&[subcommand, "--version"])
        .map(drop)
        .map_err(|_| Stop::failed(format!("{component} is not installed: rustup component add {component}")))
}

fn tree() -> Result<(), Stop> {
    let arguments =
        ["tree", "--package", "consumer-core", "--edges", "normal", "--all-features", "--prefix", "none"];
    let found = cargo::packages_in_tree(&cargo::output(&arguments)?, &FOREIGN_TO_CORE);
    if found.is_empty() {
        return Ok(());
    }
    Err(Stop::failed(format!("consumer-core depends on {}, which only adapters may", found.join(", "))))
}

fn tests(interrupt: &Interrupt) -> Result<(), Stop> {
    let features = cargo::all_features()?;
    let test = ["test", "--workspace", "--features", &features];
    // Before the servers, which would idle for minutes on a first build.
    cargo::run(cargo::cargo().args(test).arg("--no-run"), interrupt)?;
    promises_are_tested(&features)?;
    let services = Services::start(interrupt)?;
    let mut run = cargo::cargo();
    // All that fail are told at once. Models of large bounds take minutes and gigabytes.
    run.args(test).args(["--no-fail-fast", "--", "--include-ignored", "--skip", "large_bounds"]);
    // Most of them wait for servers: more of them than there are cores.
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        run.env("RUST_TEST_THREADS", TEST_THREADS);
    }
    run.env(KAFKA_VARIABLE, services.kafka.bootstrap());
    run.env(RABBITMQ_VARIABLE, services.rabbitmq.url()).env(REDIS_VARIABLE, services.redis.url());
    run.env(POSTGRES_VARIABLE, services.postgres.url());
    cargo::run(&mut run, interrupt)
}

/// Every test that the document of the promises names is one of those that run here.
fn promises_are_tested(features: &str) -> Result<(), Stop> {
    let list = ["test", "--workspace", "--features", features, "--lib", "--bins", "--tests", "--", "--list"];
    let listed = cargo::output(&[&list[..], &["--include-ignored"]].concat())?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(root.join(promises::DOCUMENT));
    let document = document.map_err(|error| Stop::failed(format!("{}: {error}", promises::DOCUMENT)))?;
    let defects = promises::defects(&document, &promises::broken(&root)?, &listed);
    if defects.is_empty() {
        return Ok(());
    }
    Err(Stop::failed(format!("{}:\n  {}", promises::DOCUMENT, defects.join("\n  "))))
}
