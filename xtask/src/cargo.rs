//! Calls of cargo, and what is read from its answers.

use crate::{interrupt::Interrupt, stop::Stop};
use serde_json::Value;
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Features that change nothing but where a C library comes from. They need more of the machine (an OpenSSL built from
/// source, Kerberos headers) and have no code of ours behind them.
const NOT_BUILT: [&str; 2] = ["tls-vendored", "gssapi"];

/// Cargo, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = in_root(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set for this program by the cargo that runs it. Build scripts that look at them would run again each time.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// A program, in the root of the workspace.
pub(crate) fn in_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

/// Runs cargo, one of its tools or what it has built, with its output shown, and fails when that does.
pub(crate) fn run(command: &mut Command, interrupt: &Interrupt) -> Result<(), Stop> {
    let shown: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let shown = format!("{} {}", program.to_string_lossy(), shown.join(" "));
    eprintln!("    {shown}");
    let status = interrupt.run(command)?;
    if status.success() { Ok(()) } else { Err(Stop::failed(format!("`{shown}` failed ({status})"))) }
}

/// Runs cargo and gives what it prints.
pub(crate) fn output(arguments: &[&str]) -> Result<String, Stop> {
    let shown = format!("cargo {}", arguments.join(" "));
    let done = cargo()
        .args(arguments)
        .output()
        .map_err(|error| Stop::failed(format!("`{shown}` cannot be run: {error}")))?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr).trim_end().to_owned();
        return Err(Stop::failed(format!("`{shown}` failed:\n{why}")));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> Result<PathBuf, Stop> {
    let directory = metadata()?["target_directory"].as_str().map(PathBuf::from);
    directory.ok_or_else(|| Stop::failed("`cargo metadata` names no target directory"))
}

/// The features to build the whole workspace with, for `--features`: all but [`NOT_BUILT`].
pub(crate) fn all_features() -> Result<String, Stop> {
    Ok(features_of(&metadata()?).join(","))
}

fn metadata() -> Result<Value, Stop> {
    let text = output(&["metadata", "--no-deps", "--format-version", "1"])?;
    serde_json::from_str(&text)
        .map_err(|error| Stop::failed(format!("the answer of `cargo metadata` is not understood: {error}")))
}

fn features_of(metadata: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let features = package["features"].as_object().into_iter().flatten().map(|(feature, _)| feature);
        let built = features.filter(|feature| !NOT_BUILT.contains(&feature.as_str()));
        all.extend(built.map(|feature| format!("{name}/{feature}")));
    }
    all
}

/// Those of `names` that are in a dependency tree printed by `cargo tree --prefix none`.
pub(crate) fn packages_in_tree<'a>(tree: &str, names: &[&'a str]) -> Vec<&'a str> {
    let has = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    names.iter().copied().filter(|name| has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_all_members_but_the_excluded() {
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "features": {"default": ["x"], "x": [], "tls-vendored": []}},
            {"name": "b", "features": {}},
            {"name": "c", "features": {"gssapi": [], "kafka": []}},
        ]});
        assert_eq!(features_of(&metadata), ["a/default", "a/x", "c/kafka"]);
    }

    #[test]
    fn a_package_is_found_by_its_whole_name() {
        let tree = "consumer-core v0.1.0 (/x)\nredis-protocol v1.0.0\nsqlx v0.9.0 (*)\n";
        assert_eq!(packages_in_tree(tree, &["redis", "sqlx", "lapin"]), ["sqlx"]);
    }
}
