//! One RabbitMQ node, and the port mapper it needs.

mod builder;
mod node;

pub use self::builder::RabbitMqBuilder;

use self::node::Node;
use super::{Certificates, ServerError, process::Slot, scratch::Scratch};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    time::Duration,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A RabbitMQ server of one's own on 127.0.0.1. Killed, and its folder removed, on drop.
///
/// What is durable is on disk and survives [`RabbitMq::stop`] and [`RabbitMq::kill`]: durable queues, exchanges and
/// bindings, persistent messages that were confirmed, quorum queues (but see [`RabbitMq::sync`]). No plugin is enabled. Neither a full disk nor much memory in use makes
/// it block publishers before there are 50 MB left of the one and 2 GB taken of the other.
#[derive(Debug)]
pub struct RabbitMq {
    // The node is dropped, and with that killed, before what it needs.
    process: Slot,
    port_mapper: Slot,
    node: Node,
    certificates: Option<Certificates>,
    _scratch: Scratch,
}

impl RabbitMq {
    /// Starts a server with the defaults: user and password `guest`, no TLS.
    ///
    /// # Errors
    /// As [`RabbitMqBuilder::start`].
    pub fn start() -> Result<Self, ServerError> {
        Self::builder().start()
    }

    /// Options first, then [`RabbitMqBuilder::start`].
    pub fn builder() -> RabbitMqBuilder {
        RabbitMqBuilder::default()
    }

    /// The URL for clients without TLS: `amqp://guest:guest@127.0.0.1:15672/%2f`.
    pub fn url(&self) -> String {
        self.node.url("amqp", self.port())
    }

    /// The URL for clients with TLS (`amqps://…`) of a server started with [`RabbitMqBuilder::tls`].
    pub fn tls_url(&self) -> Option<String> {
        self.tls_port().map(|port| self.node.url("amqps", port))
    }

    /// The port for clients without TLS.
    pub fn port(&self) -> u16 {
        self.node.ports.plain
    }

    /// The port for clients with TLS, if there is one.
    pub fn tls_port(&self) -> Option<u16> {
        self.certificates.as_ref().map(|_| self.node.ports.tls)
    }

    /// The certificates of a server started with [`RabbitMqBuilder::tls`]; they go away with it.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Where the server's log is, for a look after a failure.
    pub fn log(&self) -> PathBuf {
        self.process.log().to_owned()
    }

    /// Runs `rabbitmqctl` with these arguments against this server and gives what it prints, without headings and the
    /// last line end. Each call starts an Erlang machine, which takes about half a second.
    ///
    /// # Errors
    /// When the command fails, as it does while the server is stopped or paused.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, ServerError> {
        self.node.ctl(arguments)
    }

    /// Whether it has been started and has not ended since, by itself or otherwise.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Stops it by SIGTERM (connections are closed with a reason) and waits for its end, 20 s at most.
    pub fn stop(&self) {
        self.process.stop();
        self.port_mapper.kill();
    }

    /// Writes out what this version keeps back for up to three seconds: which quorum queues there are. A quorum queue
    /// that was declared shortly before a [`RabbitMq::kill`] comes back empty, confirmed messages or not; so a test calls
    /// this between the two.
    ///
    /// # Errors
    /// As [`RabbitMq::ctl`].
    pub fn sync(&self) -> Result<(), ServerError> {
        self.ctl(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]).map(drop)
    }

    /// Kills it by SIGKILL. What was declared shortly before may need [`RabbitMq::sync`] first.
    pub fn kill(&self) {
        self.process.kill();
        self.port_mapper.kill();
    }

    /// Lets it hang: connections stay open, nothing is answered, until [`RabbitMq::resume`].
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Goes on after [`RabbitMq::pause`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Starts it again after [`RabbitMq::stop`] or [`RabbitMq::kill`], with the same ports and data.
    ///
    /// # Errors
    /// When it is running, or is not ready within 60 s.
    pub fn start_again(&self) -> Result<(), ServerError> {
        if self.is_running() {
            return Err(ServerError::failed("rabbitmq is running already"));
        }
        let command = self.node.command()?;
        // Anew with each start: the old one may not have noticed yet that its node has gone, and would refuse the name.
        self.port_mapper.kill();
        self.process.kill();
        let mapper = self.node.ports.mapper;
        start(&self.port_mapper, &self.node.port_mapper_command(), || listens(mapper))?;
        let is_ready = || answers(self.port()) && self.tls_port().is_none_or(listens);
        start(&self.process, &command, is_ready).map_err(|error| {
            self.port_mapper.kill();
            let log = fs::read(self.process.log()).unwrap_or_default();
            error.with_output(up_to_the_failure(&String::from_utf8_lossy(&log)))
        })
    }
}

/// Without the crash reports of Erlang, which are long, come last, and say nothing more.
fn up_to_the_failure(log: &str) -> &str {
    log.split("\nBOOT FAILED").next().unwrap_or(log)
}

fn start(slot: &Slot, command: &[String], is_ready: impl Fn() -> bool) -> Result<(), ServerError> {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    slot.start(&command, START_TIMEOUT, |_| is_ready())
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether a broker answers AMQP's protocol header with the method that opens the handshake.
fn answers(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        let mut answer = [0; 11]; // frame type, channel, length, class, method
        stream.read_exact(&mut answer).map(|()| answer)
    };
    // A method frame (1) on channel 0 with connection (10), start (10).
    ask().is_ok_and(|answer: [u8; 11]| answer[..3] == [1, 0, 0] && answer[7..] == [0, 10, 0, 10])
}
