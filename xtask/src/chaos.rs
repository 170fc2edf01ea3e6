//! `cargo xtask chaos`.

use crate::{cargo, interrupt::Interrupt, machine, stop::Stop};
use std::{ffi::OsString, process::Command};

/// What the program under test is built with.
const FEATURES: &str = "orders/kafka,orders/amqp,orders/redis,orders/postgres";
/// Brokers, stores, and seeds that have all kinds of faults between them, with and without an order.
const FIXED: [(&str, &str, &str); 4] = [
    ("kafka", "redis", "813"),
    ("kafka", "postgres", "108"),
    ("amqp", "redis", "107"),
    ("amqp", "postgres", "296"),
];
/// For each of them: about half a minute.
const CYCLES: &str = "4";

/// Builds the program under test and the one that breaks it, and runs the latter.
pub(crate) fn run(rest: &[OsString], interrupt: &Interrupt) -> Result<(), Stop> {
    machine::prepare(&machine::EVERYTHING, interrupt)?;
    build(interrupt)?;
    cargo::run(program()?.args(rest), interrupt)
}

/// A few cycles of each broker with each store.
pub(crate) fn step(interrupt: &Interrupt) -> Result<(), Stop> {
    build(interrupt)?;
    for (broker, store, seed) in FIXED {
        let arguments = ["--broker", broker, "--store", store, "--cycles", CYCLES, "--seed", seed];
        cargo::run(program()?.args(arguments), interrupt)?;
    }
    Ok(())
}

fn build(interrupt: &Interrupt) -> Result<(), Stop> {
    let build = ["build", "--package", "orders", "--package", "chaos", "--features", FEATURES];
    cargo::run(cargo::cargo().args(build), interrupt)
}

fn program() -> Result<Command, Stop> {
    Ok(Command::new(cargo::target_directory()?.join("debug/chaos")))
}
