//! One Apache Kafka node, broker and controller in one process.

mod builder;
mod properties;

pub use self::builder::KafkaBuilder;

use self::properties::Ports;
use super::{Certificates, ServerError, process::Slot, scratch::Scratch};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    time::Duration,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What the broker logs once it serves.
const STARTED: &str = "Kafka Server started";

/// An Apache Kafka broker of one's own on 127.0.0.1. Killed, and its folder removed, on drop.
///
/// Topics are not created by use; sessions and rebalances are quick, so that a test which kills a member need not wait
/// 45 s for the others to notice; messages up to 5 MiB pass where the topic's `max.message.bytes` allows.
#[derive(Debug)]
pub struct Kafka {
    process: Slot,
    ports: Ports,
    java: Vec<String>,
    certificates: Option<Certificates>,
    scratch: Scratch,
}

impl Kafka {
    /// Starts a broker with the defaults: no TLS, no SASL.
    ///
    /// # Errors
    /// As [`KafkaBuilder::start`].
    pub fn start() -> Result<Self, ServerError> {
        Self::builder().start()
    }

    /// Options first, then [`KafkaBuilder::start`].
    pub fn builder() -> KafkaBuilder {
        KafkaBuilder::default()
    }

    /// The address for clients: `127.0.0.1:19092`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    /// An address without TLS and SASL, whatever [`Kafka::bootstrap`] asks for; for a test's own administration.
    pub fn plain_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.ports.internal)
    }

    /// The certificates of a broker started with [`KafkaBuilder::tls`]; they go away with it.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Where the broker's log is, for a look after a failure.
    pub fn log(&self) -> PathBuf {
        self.process.log().to_owned()
    }

    /// Whether it has been started and has not ended since, by itself or otherwise.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Stops it by SIGTERM (a controlled shutdown) and waits for its end, 20 s at most.
    pub fn stop(&self) {
        self.process.stop();
    }

    /// Kills it by SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Lets it hang: connections stay open, nothing is answered, until [`Kafka::resume`].
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Goes on after [`Kafka::pause`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Starts it again after [`Kafka::stop`] or [`Kafka::kill`], with the same ports and data.
    ///
    /// # Errors
    /// When it is running, or is not ready within 60 s.
    pub fn start_again(&self) -> Result<(), ServerError> {
        let config = self.scratch.path().join("server.properties").display().to_string();
        let mut command: Vec<&str> = self.java.iter().map(String::as_str).collect();
        command.extend(["kafka.Kafka", &config]);
        let log = self.process.log();
        self.process.start(&command, START_TIMEOUT, |_| {
            fs::read_to_string(log).is_ok_and(|log| log.contains(STARTED))
                && answers(self.ports.internal)
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.client)).is_ok()
        })
    }
}

/// Whether a broker answers the first request that every client sends, ApiVersions, without an error.
fn answers(port: u16) -> bool {
    // length 10 · ApiVersions (18) version 0 · correlation id 7 · no client id
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&REQUEST)?;
        let mut answer = [0; 10]; // length, correlation id, error code
        stream.read_exact(&mut answer).map(|()| answer)
    };
    ask().is_ok_and(|answer: [u8; 10]| answer[4..] == [0, 0, 0, 7, 0, 0])
}
