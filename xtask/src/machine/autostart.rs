//! Keeps what is installed from running as a service of the machine.

use super::debian::System;
use std::{path::Path, process::Stdio};

/// The units of packages whose services start by themselves: RabbitMQ and Erlang's port mapper, which listen on all
/// interfaces as they come, and PostgreSQL. Tests start servers of their own, so nobody has asked for these.
const UNITS: [(&str, &[&str]); 2] = [
    ("rabbitmq-server", &["rabbitmq-server.service", "epmd.service", "epmd.socket"]),
    ("postgresql", &["postgresql.service"]),
];

/// Where packages and administrators put units.
const FOLDERS: [&str; 2] = ["/lib/systemd/system", "/etc/systemd/system"];

/// Units that do not start when their package is installed. On drop they are given free, but not enabled: whoever wants
/// the service can have it.
#[derive(Debug)]
pub(super) struct HeldBack<'a> {
    units: Vec<&'static str>,
    system: &'a System,
}

impl<'a> HeldBack<'a> {
    pub(super) fn new(packages: &[&str], system: &'a System) -> Self {
        // What was there before is somebody's choice.
        let is_new = |unit: &&str| !FOLDERS.iter().any(|folder| Path::new(folder).join(unit).exists());
        let held = Self { units: units_of(packages).filter(is_new).collect(), system };
        held.systemctl("mask");
        held
    }

    /// Without systemd there is nothing to hold back: such machines are containers, which start no services.
    fn systemctl(&self, verb: &str) {
        for unit in &self.units {
            let mut systemctl = self.system.as_root("systemctl");
            let _ = systemctl.args([verb, unit]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.systemctl("unmask");
        self.systemctl("disable");
    }
}

fn units_of(packages: &[&str]) -> impl Iterator<Item = &'static str> {
    UNITS
        .iter()
        .filter(|(package, _)| packages.contains(package))
        .flat_map(|(_, units)| units.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_is_held_back() {
        assert_eq!(units_of(&["make", "maven"]).count(), 0);
        assert_eq!(units_of(&["make", "postgresql"]).collect::<Vec<_>>(), ["postgresql.service"]);
        assert!(units_of(&["make", "rabbitmq-server"]).any(|unit| unit == "epmd.socket"));
    }
}
