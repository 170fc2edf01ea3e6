//! `cargo xtask concurrency`, and the step of that name.

use crate::{cargo, interrupt::Interrupt, stop::Stop};
use clap::Args;
use std::env;

/// How much is tried.
#[derive(Debug, Default, Args)]
pub(crate) struct Schedules {
    /// How many orders each test tries, and of those that are rare a multiple; 1000 by default
    #[arg(long, value_name = "COUNT")]
    schedules: Option<u32>,
}

/// Only what is needed: of the core its unit tests, and the files of the adapters without their drivers.
const TESTS: [&str; 9] =
    ["--package", "consumer-core", "--package", "concurrency", "--lib", "--test", "kafka", "--test", "amqp"];

/// Builds with the scheduler's primitives, apart from the ordinary build, which stays as it is.
pub(crate) fn run(schedules: &Schedules, interrupt: &Interrupt) -> Result<(), Stop> {
    let target = cargo::target_directory()?.join("shuttle");
    let mut flags = env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" --cfg shuttle");
    let mut test = cargo::cargo();
    test.arg("test").args(TESTS).arg("--target-dir").arg(target).arg("concurrency::");
    test.env("RUSTFLAGS", flags);
    if let Some(count) = schedules.schedules {
        test.env("CONCURRENCY_SCHEDULES", count.to_string());
    }
    cargo::run(&mut test, interrupt)
}
