//! `cargo xtask bench`.

use crate::{cargo, interrupt::Interrupt, machine, services::Services, stop::Stop};
use std::ffi::OsString;

/// Builds the benches, starts servers, runs the one on the other. Nothing but their own output is on stdout.
pub(crate) fn run(json: bool, rest: &[OsString], interrupt: &Interrupt) -> Result<(), Stop> {
    machine::prepare(&machine::EVERYTHING, interrupt)?;
    // Before the servers, which would idle for minutes on a first build.
    cargo::run(cargo::cargo().args(["build", "--release", "--package", "benches"]), interrupt)?;
    let services = Services::start(interrupt)?;
    let mut bench = cargo::cargo();
    bench.args(["run", "--quiet", "--release", "--package", "benches", "--"]);
    bench.args(["--kafka", &services.kafka.bootstrap(), "--amqp", &services.rabbitmq.url()]);
    bench.args(["--redis", &services.redis.url(), "--postgres", &services.postgres.url()]);
    if json {
        bench.arg("--json");
    }
    cargo::run(bench.args(rest), interrupt)
}
