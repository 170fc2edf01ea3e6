//! `cargo xtask mutants`.

use crate::{cargo, interrupt::Interrupt, stop::Stop};
use clap::Args;
use serde::Deserialize;
use std::{ffi::OsString, fs, path::Path};

const CONFIG: &str = ".cargo/mutants.toml";

/// What is broken; everything that `.cargo/mutants.toml` names by default.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only what is in these files
    #[arg(long, value_name = "PATH")]
    file: Vec<String>,
    /// Further arguments, handed to cargo-mutants as they are
    #[arg(last = true)]
    rest: Vec<OsString>,
}

#[derive(Debug, Deserialize)]
struct Config {
    examine_globs: Vec<String>,
}

/// Runs cargo-mutants as `.cargo/mutants.toml` says, in a copy of the workspace. It fails when one is left that no test
/// notices; docs/mutants.md has those that none can.
pub(crate) fn run(selection: &Selection, interrupt: &Interrupt) -> Result<(), Stop> {
    install(interrupt)?;
    let mut mutants = cargo::cargo();
    mutants.args(["mutants", "--workspace"]);
    // A file on the command line stands beside those in the configuration.
    if !selection.file.is_empty() {
        let others = others(&selection.file)?;
        mutants.args(selection.file.iter().flat_map(|file| ["--file", file]));
        mutants.args(others.iter().flat_map(|file| ["--exclude", file]));
    }
    cargo::run(mutants.args(&selection.rest), interrupt)
}

/// What the configuration names and `chosen` does not.
fn others(chosen: &[String]) -> Result<Vec<String>, Stop> {
    let failed = |why: String| Stop::failed(format!("{CONFIG}: {why}"));
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(CONFIG))
        .map_err(|error| failed(error.to_string()))?;
    let config: Config = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
    Ok(config.examine_globs.into_iter().filter(|file| !chosen.contains(file)).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_is_not_left_out() {
        let all = others(&[]).unwrap();
        let (chosen, rest) = all.split_first().unwrap();
        assert!(!rest.is_empty());
        assert_eq!(others(std::slice::from_ref(chosen)).unwrap(), rest);
    }
}
