//! The running service, asked as a client asks it, killed and started again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

#[cfg(any(feature = "amqp", feature = "kafka"))]
mod brokers;
#[cfg(all(feature = "kafka", feature = "postgres"))]
mod chaos;
mod crashes;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const ORDER: &str = r#"{"email":"ann@example.com","total":1999}"#;

fn checkout(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checkout"));
    command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The service while it runs.
struct Service {
    child: Child,
    address: String,
}

impl Service {
    /// With a database in this folder.
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let database = format!("sqlite:{}", folder.join("checkout.db").display());
        Self::with(&[&["--database", &database], arguments].concat())
    }

    fn with(arguments: &[&str]) -> Self {
        // Read by nobody, a pipe would fill.
        let mut command = checkout(&["--listen", "127.0.0.1:0"]);
        let mut child = command.args(arguments).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim_end().strip_prefix("http://").unwrap().strip_suffix("/orders").unwrap();
        Self { child, address: address.to_owned() }
    }

    /// Sends an order under this key; gives the status, the head and the body of the answer.
    fn place(&self, key: &str, more: &str) -> (u16, String, String) {
        post(&self.address, key, ORDER, more).unwrap()
    }

    /// What is in the account of [`ORDER`].
    fn balance(&self) -> i64 {
        balance(&self.address, "ann@example.com").unwrap()
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it ends well.
    fn ends(mut self) -> bool {
        end_of(&mut self.child).success()
    }
}

/// One request; none where there is no whole answer.
fn ask(address: &str, request: &str) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, head.to_owned(), body.to_owned()))
}

fn post(address: &str, key: &str, order: &str, more: &str) -> Option<(u16, String, String)> {
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nidempotency-key: {key}\r\n{more}\r\n{order}",
        order.len()
    );
    ask(address, &request)
}

/// An account that is not there has nothing.
fn balance(address: &str, email: &str) -> Option<i64> {
    let request = format!("GET /accounts/{email} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    match ask(address, &request)? {
        (200, _, body) => serde_json::from_str::<Value>(&body).ok()?["balance"].as_i64(),
        (404, ..) => Some(0),
        _ => None,
    }
}

/// Waits for a condition that has to come true.
#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end_of(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Its exit code and what it says, for a command line that it does not take.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = checkout(arguments).spawn().unwrap();
    let code = end_of(&mut child).code();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (code, said)
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_listens_on_loopback_and_ends_by_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    for serve in [&[][..], &["--no-relay"]] {
        let service = Service::start(folder.path(), serve);
        assert!(service.address.starts_with("127.0.0.1:"));
        let (status, head, body) = service.place("17", "");
        assert_eq!(status, 201, "{body}");
        assert!(head.contains("location: /orders/o-17"), "{head}");
        service.terminate();
        assert!(service.ends());
    }
}

#[test]
fn what_is_wrong_with_the_command_line_is_said_without_the_password() {
    let urls = [("ann:s3cret@h", "begins with"), ("kafka://", "kafka"), ("amqp://u:s3cret@h:x", "amqp")];
    for (url, because) in urls {
        let (code, said) = refused(&["--broker", url]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(because) && !said.contains("s3cret"), "{said}");
    }
    let databases =
        [("ann:s3cret@h", "begins with"), ("postgres://u:s3cret@h:x", "URL"), ("sqlite::memory:", "file")];
    for (url, because) in databases {
        let (code, said) = refused(&["--database", url]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(because) && !said.contains("s3cret"), "{said}");
    }
    for arguments in [&["--database-timeout", "soon"][..], &["--database-timeout", "0s"], &["balances"]] {
        assert_eq!(refused(arguments).0, Some(2), "{arguments:?}");
    }
}
