//! `cargo deny`: licenses, banned crates and their sources as a step of the tests, advisories as a task of its own.

use crate::{cargo, interrupt::Interrupt, stop::Stop};
use std::{
    env, fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::Stdio,
};

const VERSION: &str = "0.20.2";

/// Checks all that needs no network.
pub(crate) fn check(interrupt: &Interrupt) -> Result<(), Stop> {
    let program = program(interrupt)?;
    cargo::run(cargo::in_root(&program).args(["check", "licenses", "bans", "sources"]), interrupt)
}

/// Compares the crates with the RustSec advisory database.
pub(crate) fn audit(interrupt: &Interrupt) -> Result<(), Stop> {
    let program = program(interrupt)?;
    if let Err(Stop::Failed(why)) = cargo::run(cargo::in_root(&program).args(["fetch", "db"]), interrupt) {
        return Err(Stop::Unchecked(format!(
            "the advisory database could not be fetched, so nothing was checked and nothing is known of \
             vulnerabilities: {why}\nIt comes by `git` from https://github.com/RustSec/advisory-db."
        )));
    }
    interrupt.check()?;
    cargo::run(cargo::in_root(&program).args(["check", "--disable-fetch", "advisories"]), interrupt)
}

/// Where cargo-deny is: our own, else the one in `PATH`, else it is installed first.
pub(crate) fn program(interrupt: &Interrupt) -> Result<PathBuf, Stop> {
    // Not cargo's target folder, for the reason that Kafka's jars are not there.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(format!("cargo-deny-{VERSION}"));
    let ours = root.join("bin/cargo-deny");
    if ours.is_file() {
        return Ok(ours);
    }
    if let Some(found) = in_path("cargo-deny") {
        return Ok(found);
    }
    eprintln!("    installing cargo-deny {VERSION} (a minute or two)");
    match install(&root, interrupt) {
        Ok(()) => Ok(ours),
        Err(Stop::Failed(why)) => Err(Stop::failed(advice(&why))),
        Err(stop) => Err(stop),
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn install(root: &Path, interrupt: &Interrupt) -> Result<(), Stop> {
    let failed = |error: io::Error| Stop::failed(format!("cargo-deny cannot be put in place: {error}"));
    let parent = root.parent().unwrap_or(root);
    fs::create_dir_all(parent).map_err(failed)?;
    let work = tempfile::Builder::new().prefix("cargo-deny-").tempdir_in(parent).map_err(failed)?;
    let mut install = cargo::cargo();
    install.args(["install", "cargo-deny", "--locked", "--version", VERSION]);
    // Advisories are fetched by the `git` command then: no other git to build.
    install.arg("--no-default-features").arg("--root").arg(work.path());
    install.arg("--target-dir").arg(work.path().join("build"));
    // It runs for a second, so it is not worth minutes of optimising.
    for (setting, value) in [("OPT_LEVEL", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0")] {
        install.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    install.stdout(Stdio::from(io::stderr()));
    cargo::run(&mut install, interrupt)?;
    fs::create_dir_all(root.join("bin")).map_err(failed)?;
    // By rename, so that a program of that name is always complete.
    match fs::rename(work.path().join("bin/cargo-deny"), root.join("bin/cargo-deny")) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    }
}

/// What to do where it cannot be installed.
fn advice(why: &str) -> String {
    format!(
        "cargo-deny is not there and could not be installed: {why}\nInstall it from crates.io (`cargo install \
         cargo-deny --locked`) or from a package, so that it is in PATH; or leave the check out: `cargo xtask test \
         --skip machine --skip deny`."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_in_path() {
        assert!(in_path("sh").is_some());
        assert_eq!(in_path("no-program-of-this-name"), None);
    }

    #[test]
    fn the_advice_says_how_to_get_it_and_how_to_go_on_without() {
        let text = advice("no network");
        for part in ["no network", "cargo install cargo-deny", "--skip deny"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
