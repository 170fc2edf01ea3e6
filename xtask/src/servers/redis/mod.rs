//! Redis servers: one alone, a Cluster, a Sentinel set.

mod builder;
mod cluster;
mod sentinel;

pub use self::builder::RedisBuilder;
pub use self::cluster::RedisCluster;
pub use self::sentinel::RedisSentinel;

use super::{
    Certificates, ServerError,
    process::{self, Slot},
    scratch::Scratch,
};
use std::{fs, io, process::Command, time::Duration};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Files that hold data, relative to the server's folder.
const DATA: [&str; 2] = ["dump.rdb", "appendonlydir"];

/// A Redis server of one's own on 127.0.0.1. Killed, and its folder removed, on drop.
///
/// Nothing is written to disk unless asked for by [`RedisBuilder::append_only`], so a restart loses the data, as a
/// Redis without persistence does.
#[derive(Debug)]
pub struct Redis {
    process: Slot,
    access: Access,
    is_sentinel: bool,
    scratch: Scratch,
}

/// What a client needs to know. `Debug` leaves the password out.
struct Access {
    port: u16,
    bus_port: u16,
    password: Option<String>,
    certificates: Option<Certificates>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("port", &self.port).field("certificates", &self.certificates).finish()
    }
}

impl Redis {
    /// Starts a server with the defaults: no password, no TLS, no persistence.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`].
    pub fn start() -> Result<Self, ServerError> {
        Self::builder().start()
    }

    /// Options first, then [`RedisBuilder::start`].
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// The URL for clients, with the password if there is one: `redis://127.0.0.1:7000`.
    pub fn url(&self) -> String {
        let scheme = if self.access.certificates.is_some() { "rediss" } else { "redis" };
        let password =
            self.access.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{password}127.0.0.1:{}", self.port())
    }

    /// The port it listens on; the same after every [`Redis::start_again`].
    pub fn port(&self) -> u16 {
        self.access.port
    }

    fn bus_port(&self) -> u16 {
        self.access.bus_port
    }

    /// The certificates of a server started with [`RedisBuilder::tls`]; they go away with it.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.access.certificates.as_ref()
    }

    /// Whether it has been started and has not ended since, by itself or otherwise.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Stops it by SIGTERM and waits for its end.
    pub fn stop(&self) {
        self.process.stop();
    }

    /// Kills it by SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Lets it hang: connections stay open, nothing is answered, until [`Redis::resume`].
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Goes on after [`Redis::pause`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Starts it again after [`Redis::stop`] or [`Redis::kill`], on the same port, with the data that is on disk.
    ///
    /// # Errors
    /// When it is running, or does not get ready within 30 s.
    pub fn start_again(&self) -> Result<(), ServerError> {
        let config = self.scratch.path().join("redis.conf").display().to_string();
        let mut command = vec!["redis-server", &config];
        if self.is_sentinel {
            command.push("--sentinel");
        }
        self.process.start(&command, START_TIMEOUT, |pid| {
            // Its pid as well as an answer: another Redis may have taken the port.
            self.cli(&["PING"]).is_ok_and(|answer| answer == "PONG")
                && self
                    .cli(&["INFO", "server"])
                    .is_ok_and(|info| info.contains(&format!("process_id:{pid}\r")))
        })
    }

    /// Like [`Redis::start_again`], without whatever data is on disk.
    ///
    /// # Errors
    /// As [`Redis::start_again`].
    pub fn start_again_empty(&self) -> Result<(), ServerError> {
        for name in DATA {
            let path = self.scratch.path().join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ServerError::io("the data of redis could not be removed", error));
                }
                _ => {}
            }
        }
        self.start_again()
    }

    /// Runs one command by `redis-cli` and gives its answer as text: a missing value is empty, an array has one line
    /// for each element.
    ///
    /// # Errors
    /// When the server cannot be reached or answers with an error.
    pub fn cli(&self, command: &[&str]) -> Result<String, ServerError> {
        self.run_cli(&[], command)
    }

    fn run_cli(&self, options: &[&str], command: &[&str]) -> Result<String, ServerError> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-e", "-h", "127.0.0.1", "-p", &self.port().to_string()]);
        if let Some(certificates) = self.certificates() {
            // Whatever it shows: some have a certificate that a client must refuse.
            cli.args(["--tls", "--insecure"]);
            cli.arg("--cert")
                .arg(certificates.client_certificate())
                .arg("--key")
                .arg(certificates.client_key());
        }
        if let Some(password) = &self.access.password {
            cli.env("REDISCLI_AUTH", password);
        }
        let answer = process::output(cli.args(options).args(command))?;
        Ok(answer.strip_suffix('\n').unwrap_or(&answer).to_owned())
    }
}
