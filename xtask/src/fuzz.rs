//! `cargo xtask fuzz`: the property tests of parsers, each for as long as one likes.

use crate::{cargo, interrupt::Interrupt, stop::Stop};
use clap::Args;
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command};

/// How much.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// For so many minutes in all, which the targets share
    #[arg(long, value_name = "N", default_value = "5", conflicts_with = "cases")]
    minutes: u64,
    /// So many inputs for each target, rounded up to rounds of 256
    #[arg(long, value_name = "N")]
    cases: Option<u64>,
    /// Only targets with this in their name (may be repeated)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The seed of the first round, as a failure has told it [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// A test in an executable.
#[derive(Debug)]
struct Target {
    executable: PathBuf,
    test: String,
}

/// Builds the tests of all crates that have targets, and runs one target after another.
pub(crate) fn run(args: &FuzzArgs, interrupt: &Interrupt) -> Result<(), Stop> {
    let targets = targets(&args.only, interrupt)?;
    if targets.is_empty() {
        return Err(Stop::failed("there is no such target"));
    }
    let folder =
        tempfile::tempdir().map_err(|error| Stop::failed(format!("no temporary folder: {error}")))?;
    let (mut inputs, mut failed) = (0, Vec::new());
    for Target { executable, test } in &targets {
        let report = folder.path().join(test.replace("::", "-"));
        let mut command = Command::new(executable);
        command.args([test, "--exact", "--quiet"]).env("FUZZ_REPORT", &report).env("RUST_BACKTRACE", "0");
        match args.cases {
            Some(cases) => command.env("FUZZ_CASES", cases.to_string()),
            None => command.env("FUZZ_SECONDS", (args.minutes * 60 / targets.len() as u64).to_string()),
        };
        if let Some(seed) = args.seed {
            command.env("FUZZ_SEED", seed.to_string());
        }
        // What it prints is of interest where it fails, and libtest prints it then.
        let log = folder.path().join("log");
        let file =
            fs::File::create(&log).map_err(|error| Stop::failed(format!("no file for a log: {error}")))?;
        let is_fine = interrupt.run(command.stdout(file))?.success();
        match fs::read_to_string(&report) {
            Ok(line) if is_fine => {
                print!("{line}");
                inputs += inputs_of(&line).unwrap_or(0);
            }
            _ => {
                println!("{}", fs::read_to_string(&log).unwrap_or_default());
                failed.push(test.as_str());
            }
        }
    }
    println!("{inputs} inputs in {} targets", targets.len());
    if failed.is_empty() { Ok(()) } else { Err(Stop::failed(format!("failed: {}", failed.join(", ")))) }
}

fn targets(only: &[String], interrupt: &Interrupt) -> Result<Vec<Target>, Stop> {
    let metadata = json(&cargo::output(&["metadata", "--no-deps", "--format-version", "1"])?)?;
    let packages: Vec<_> =
        packages_of(&metadata).into_iter().flat_map(|name| ["--package".to_owned(), name]).collect();
    let base = ["test", "--lib", "--bins", "--no-run"];
    // Its progress is shown here, and the same once more is quick.
    cargo::run(cargo::cargo().args(base).args(&packages), interrupt)?;
    let mut arguments = base.to_vec();
    arguments.extend(packages.iter().map(String::as_str));
    arguments.push("--message-format=json");
    let mut all = Vec::new();
    for line in cargo::output(&arguments)?.lines() {
        let message = json(line)?;
        if message["profile"]["test"] != true {
            continue;
        }
        let Some(executable) = message["executable"].as_str() else { continue };
        let list = Command::new(executable).arg("--list").output();
        let list = list.map_err(|error| Stop::failed(format!("{executable} cannot be run: {error}")))?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let tests =
            list.lines().filter_map(|line| line.strip_suffix(": test")).filter(|test| is_meant(test, only));
        all.extend(tests.map(|test| Target { executable: executable.into(), test: test.to_owned() }));
    }
    Ok(all)
}

fn is_meant(test: &str, only: &[String]) -> bool {
    let Some(name) = test.rsplit("::").next().and_then(|last| last.strip_prefix("fuzz_")) else {
        return false;
    };
    only.is_empty() || only.iter().any(|only| name.contains(only.as_str()))
}

/// The members that use the crate `fuzz`.
fn packages_of(metadata: &Value) -> Vec<String> {
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let uses = |package: &Value| all(&package["dependencies"]).iter().any(|it| it["name"] == "fuzz");
    let packages = all(&metadata["packages"]).into_iter().filter(uses);
    packages.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect()
}

/// From `fuzz kafka_url: 25600 inputs in …`.
fn inputs_of(line: &str) -> Option<u64> {
    line.split_once(": ")?.1.split(' ').next()?.parse().ok()
}

fn json(text: &str) -> Result<Value, Stop> {
    serde_json::from_str(text)
        .map_err(|error| Stop::failed(format!("an answer of cargo is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_tests_of_that_name() {
        let only = ["kafka".to_owned()];
        assert!(is_meant("fuzz::fuzz_kafka_url", &[]) && is_meant("fuzz::fuzz_kafka_url", &only));
        assert!(!is_meant("fuzz::fuzz_amqp_url", &only));
        assert!(!is_meant("fuzz::kafka", &[]) && !is_meant("url::tests::hosts_only", &[]));
        assert_eq!(inputs_of("fuzz kafka_url: 25600 inputs in 3 s from seed 7"), Some(25_600));
    }

    #[test]
    fn packages_are_those_that_use_the_crate() {
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "dependencies": [{"name": "fuzz", "kind": "dev"}]},
            {"name": "b", "dependencies": [{"name": "bytes", "kind": null}]},
        ]});
        assert_eq!(packages_of(&metadata), ["a"]);
    }
}
