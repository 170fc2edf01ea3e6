//! `cargo xtask mutants`.

use crate::{cargo, interrupt::Interrupt, stop::Stop};
use clap::Args;
use std::ffi::OsString;

/// What is broken; everything that `.cargo/mutants.toml` names by default.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only what is in these files
    #[arg(long, value_name = "GLOB")]
    file: Vec<String>,
    /// Further arguments, handed to cargo-mutants as they are
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Runs cargo-mutants as `.cargo/mutants.toml` says, in a copy of the workspace. It fails when one is left that no test
/// notices; docs/mutants.md has those that none can.
pub(crate) fn run(selection: &Selection, interrupt: &Interrupt) -> Result<(), Stop> {
    install(interrupt)?;
    let mut mutants = cargo::cargo();
    mutants.args(["mutants", "--workspace"]);
    // A glob on the command line stands in place of those in the configuration.
    mutants.args(selection.file.iter().flat_map(|glob| ["--file", glob]));
    cargo::run(mutants.args(&selection.rest), interrupt)
}

fn install(interrupt: &Interrupt) -> Result<(), Stop> {
    if cargo::output(&["mutants", "--version"]).is_ok() {
        return Ok(());
    }
    eprintln!("    cargo-mutants is not there: installing it");
    let install = ["install", "cargo-mutants", "--locked", "--version", "^27"];
    cargo::run(cargo::cargo().args(install), interrupt).map_err(|stop| match stop {
        Stop::Failed(why) => Stop::failed(format!(
            "cargo-mutants is not there and cannot be installed: {why}. It takes the network: cargo {}",
            install.join(" ")
        )),
        other => other,
    })
}
