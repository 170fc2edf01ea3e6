//! Installing from Debian's packages.

use super::{
    autostart::HeldBack,
    requirement::{JAVA_PACKAGE, Missing},
};
use crate::{interrupt::Interrupt, stop::Stop};
use std::{
    fs, io,
    process::{Command, Stdio},
};

/// What kind of system this is, as far as installing goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    is_debian: bool,
    /// Debian's release, where it has a number.
    release: Option<u32>,
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Root,
    /// `sudo` without a password.
    Sudo,
    None,
}

impl System {
    pub(super) fn detect() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let (is_debian, release) = parse(&release);
        Self { is_debian: is_debian && succeeds(&["apt-get", "--version"]), release, access: access() }
    }

    pub(super) fn can_install(&self) -> bool {
        self.is_debian && self.access != Access::None
    }

    pub(super) fn as_root(&self, program: &str) -> Command {
        if self.access != Access::Sudo {
            return Command::new(program);
        }
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", program]);
        sudo
    }
}

fn access() -> Access {
    let user = Command::new("id").arg("-u").output().map(|done| done.stdout).unwrap_or_default();
    if user.trim_ascii() == b"0" {
        Access::Root
    } else if succeeds(&["sudo", "-n", "true"]) {
        Access::Sudo
    } else {
        Access::None
    }
}

fn succeeds(command: &[&str]) -> bool {
    Command::new(command[0]).args(&command[1..]).output().is_ok_and(|done| done.status.success())
}

/// Reads `/etc/os-release`: whether it is Debian or made from it, and the number of Debian's own release.
fn parse(os_release: &str) -> (bool, Option<u32>) {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"')
    };
    if field("ID") == "debian" {
        return (true, field("VERSION_ID").parse().ok());
    }
    (field("ID_LIKE").split(' ').any(|id| id == "debian"), None)
}

/// The packages to install, each once.
pub(super) fn packages(missing: &[Missing], system: &System) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for one in missing {
        let package = match (one.package, system.release) {
            // Debian 11's default is Java 11.
            (JAVA_PACKAGE, Some(11)) => "openjdk-17-jre-headless",
            (package, _) => package,
        };
        packages.push(package);
        // Without recommended packages a compiler comes without the C library's headers.
        if package == "gcc" {
            packages.push("libc6-dev");
        }
    }
    packages
}

/// `apt-get update`, then `apt-get install`, as few packages as will do. No RabbitMQ or PostgreSQL is started by that.
pub(super) fn install(packages: &[&str], system: &System, interrupt: &Interrupt) -> Result<(), Stop> {
    apt(&["update"], system, interrupt)?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    let _held_back = HeldBack::new(packages, system);
    apt(&arguments, system, interrupt)
}

fn apt(arguments: &[&str], system: &System, interrupt: &Interrupt) -> Result<(), Stop> {
    let mut command = system.as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    // Another apt may be at work, for five minutes at most. No terminal of its own: it runs in the background.
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
    // Standard output is for what a task prints.
    command.stdout(Stdio::from(io::stderr()));
    let status = interrupt.run(&mut command)?;
    if status.success() {
        return Ok(());
    }
    Err(Stop::failed(format!("`apt-get {}` failed ({status})", arguments.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(package: &'static str) -> Missing {
        Missing { name: "something", found: None, package }
    }

    fn debian(release: Option<u32>) -> System {
        System { is_debian: true, release, access: Access::Root }
    }

    #[test]
    fn the_release_is_read() {
        let bookworm = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(parse(bookworm), (true, Some(12)));
        assert_eq!(parse("ID=debian\n"), (true, None));
        assert_eq!(parse("ID=ubuntu\nVERSION_ID=\"24.04\"\nID_LIKE=debian\n"), (true, None));
        assert_eq!(parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), (true, None));
        assert_eq!(parse("ID=fedora\nVERSION_ID=42\n"), (false, None));
        assert_eq!(parse(""), (false, None));
    }

    #[test]
    fn packages_follow_the_release() {
        let java = [missing(JAVA_PACKAGE)];
        assert_eq!(packages(&java, &debian(Some(12))), ["default-jre-headless"]);
        assert_eq!(packages(&java, &debian(Some(11))), ["openjdk-17-jre-headless"]);
        assert_eq!(packages(&java, &debian(None)), ["default-jre-headless"]);
        let build = [missing("gcc"), missing("make")];
        assert_eq!(packages(&build, &debian(Some(12))), ["gcc", "libc6-dev", "make"]);
        assert!(packages(&[], &debian(Some(12))).is_empty());
    }

    #[test]
    fn nothing_is_installed_without_the_right_to() {
        assert!(debian(None).can_install());
        assert!(!System { access: Access::None, ..debian(None) }.can_install());
        assert!(!System { is_debian: false, ..debian(None) }.can_install());
    }
}
