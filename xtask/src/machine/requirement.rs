//! The programs and headers that are needed, and how each is found.

use std::{fmt, process::Command};

type Version = (u32, u32);

/// One thing the machine must have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requirement {
    /// As said to the user.
    name: &'static str,
    /// What prints its version, on either output.
    command: &'static [&'static str],
    /// What stands before the version in that output.
    marker: &'static str,
    at_least: Version,
    /// Debian's package, where it depends on nothing else.
    package: &'static str,
}

/// A [`Requirement`] that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) name: &'static str,
    /// The version that is there and too old.
    pub(super) found: Option<String>,
    pub(super) package: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match &self.found {
            Some(version) => write!(f, " (found {version})"),
            None => Ok(()),
        }
    }
}

/// The package of Java; which one it really is depends on the release.
pub(super) const JAVA_PACKAGE: &str = "default-jre-headless";

const REDIS: Requirement = Requirement {
    name: "Redis 7.0 or newer",
    command: &["redis-server", "--version"],
    marker: "v=",
    at_least: (7, 0),
    package: "redis-server",
};
const REDIS_TOOLS: Requirement =
    any_version("redis-cli and redis-benchmark", &["redis-benchmark", "--version"], "redis-tools");
const JAVA: Requirement = Requirement {
    name: "Java 17 or newer",
    command: &["java", "-version"],
    marker: "version \"",
    at_least: (17, 0),
    package: JAVA_PACKAGE,
};
const MAVEN: Requirement = Requirement {
    name: "Maven",
    command: &["mvn", "--version"],
    marker: "Apache Maven ",
    at_least: (3, 0),
    package: "maven",
};
const OPENSSL: Requirement = Requirement {
    name: "the openssl command",
    command: &["openssl", "version"],
    marker: "OpenSSL ",
    at_least: (1, 1),
    package: "openssl",
};

const RABBITMQ: Requirement = Requirement {
    name: "RabbitMQ 3.10 or newer",
    // Its own `version` command leaves a port mapper running, and a cookie in the home folder.
    command: &["readlink", "-e", "/usr/lib/rabbitmq/bin/rabbitmq-server"],
    marker: "rabbitmq_server-",
    at_least: (3, 10),
    package: "rabbitmq-server",
};

const POSTGRES: Requirement = Requirement {
    name: "PostgreSQL 13 or newer",
    // Its programs are not in PATH.
    command: &["sh", "-c", "ls -d /usr/lib/postgresql/*/bin/postgres | sort -V | tail -n 1"],
    marker: "/usr/lib/postgresql/",
    at_least: (13, 0),
    package: "postgresql",
};

/// What the servers need.
pub(crate) const SERVERS: [Requirement; 7] = [REDIS, REDIS_TOOLS, JAVA, MAVEN, RABBITMQ, POSTGRES, OPENSSL];

/// What the servers and the build need; the build of librdkafka wants a C++ compiler too.
pub(crate) const EVERYTHING: [Requirement; 13] = [
    REDIS,
    REDIS_TOOLS,
    JAVA,
    MAVEN,
    RABBITMQ,
    POSTGRES,
    OPENSSL,
    any_version("a C compiler", &["cc", "--version"], "gcc"),
    any_version("a C++ compiler", &["c++", "--version"], "g++"),
    any_version("make", &["make", "--version"], "make"),
    any_version("pkg-config", &["pkg-config", "--version"], "pkg-config"),
    Requirement {
        name: "the headers of OpenSSL",
        command: &["pkg-config", "--modversion", "openssl"],
        marker: "",
        at_least: (1, 1),
        package: "libssl-dev",
    },
    Requirement {
        name: "the headers of zlib",
        command: &["pkg-config", "--modversion", "zlib"],
        marker: "",
        at_least: (1, 0),
        package: "zlib1g-dev",
    },
];

/// Something that has only to be there: many say in their own way which version they are.
const fn any_version(
    name: &'static str,
    command: &'static [&'static str],
    package: &'static str,
) -> Requirement {
    Requirement { name, command, marker: "", at_least: (0, 0), package }
}

impl Requirement {
    /// Whether Kafka's jars are needed along with it.
    pub(super) fn is_for_kafka(&self) -> bool {
        self.package == JAVA_PACKAGE
    }

    /// Runs its command; `None` when all is well.
    pub(super) fn look(&self) -> Option<Missing> {
        let done = Command::new(self.command[0]).args(&self.command[1..]).output();
        let said = done.ok().filter(|done| done.status.success()).map(|done| {
            // Java prints its version on standard error.
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
        });
        self.judge(said.as_deref())
    }

    /// Decides by what its command has said; `None` as input means that it could not be run.
    fn judge(&self, said: Option<&str>) -> Option<Missing> {
        let missing = |found| Some(Missing { name: self.name, found, package: self.package });
        let Some(said) = said else { return missing(None) };
        if self.at_least == (0, 0) {
            return None;
        }
        match version_after(said, self.marker) {
            Some((version, _)) if version >= self.at_least => None,
            Some((_, text)) => missing(Some(text)),
            None => missing(None),
        }
    }
}

/// The first version after `marker`, as numbers and as text: `v=7.0.15 sha=…` gives (7, 0) and `7.0.15`. Java's old way
/// of counting, 1.8 for 8, comes out lower than any version asked for, as it should.
fn version_after(text: &str, marker: &str) -> Option<(Version, String)> {
    let (_, rest) = text.split_once(marker)?;
    let text: String = rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let mut numbers = text.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Some(((major, minor), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        let version = |text, marker| version_after(text, marker).map(|(version, _)| version);
        let redis =
            "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0";
        assert_eq!(version(redis, "v="), Some((7, 0)));
        assert_eq!(version("openjdk version \"17.0.15\" 2025-04-15", "version \""), Some((17, 0)));
        assert_eq!(version("openjdk version \"21-ea\" 2023-09-19", "version \""), Some((21, 0)));
        assert_eq!(version("java version \"1.8.0_392\"", "version \""), Some((1, 8)));
        assert_eq!(version("Apache Maven 3.8.7\nMaven home: /usr", "Apache Maven "), Some((3, 8)));
        assert_eq!(version("OpenSSL 3.0.19 27 Jan 2026", "OpenSSL "), Some((3, 0)));
        let rabbitmq = "/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server";
        assert_eq!(version(rabbitmq, "rabbitmq_server-"), Some((3, 10)));
        let postgres = "/usr/lib/postgresql/15/bin/postgres\n";
        assert_eq!(version(postgres, POSTGRES.marker), Some((15, 0)));
        assert_eq!(version("3.0.19\n", ""), Some((3, 0)));
        assert_eq!(version("LibreSSL 3.3.6", "OpenSSL "), None);
        assert_eq!(version("openssl version unknown", "version "), None);
    }

    #[test]
    fn what_is_too_old_is_missing_and_its_version_told() {
        assert_eq!(REDIS.judge(Some("Redis server v=7.0.15 sha=0")), None);
        assert_eq!(REDIS.judge(Some("Redis server v=8.0.2 sha=0")), None);
        let old = REDIS.judge(Some("Redis server v=6.2.14 sha=0")).unwrap();
        assert_eq!(old.to_string(), "Redis 7.0 or newer (found 6.2.14)");
        assert_eq!(JAVA.judge(Some("java version \"1.8.0_392\"")).unwrap().found.as_deref(), Some("1.8.0"));
        assert_eq!(JAVA.judge(None).unwrap().found, None);
    }

    #[test]
    fn a_compiler_of_any_version_will_do() {
        let compiler = any_version("a C compiler", &["cc", "--version"], "gcc");
        assert_eq!(compiler.judge(Some("anything at all")), None);
        assert!(compiler.judge(None).is_some());
    }
}
