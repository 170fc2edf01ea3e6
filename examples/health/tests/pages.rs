//! Asks the running example what an orchestrator and Prometheus would ask.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Example {
    child: Child,
    address: String,
}

impl Example {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_health"))
            .args(["--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let address = said.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        Self { child, address }
    }

    /// Status and body of a page.
    fn get(&self, page: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Asks until the answer is as it should become.
    #[track_caller]
    fn until(&self, page: &str, wanted: impl Fn(u16, &str) -> bool) -> (u16, String) {
        let begin = Instant::now();
        loop {
            let (status, body) = self.get(page);
            if wanted(status, &body) {
                return (status, body);
            }
            assert!(begin.elapsed() < PATIENCE, "{page} still says {status} {body}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_consumer_that_gets_on_is_live_ready_and_counted() {
    let example = Example::start(&[]);
    example.until("/ready", |status, _| status == 200);
    assert_eq!(example.get("/live").0, 200);
    let processed = r#"consumer_deliveries_total{consumer="order-mails",outcome="processed"}"#;
    let (_, metrics) = example.until("/metrics", |_, body| body.contains(processed));
    for name in ["consumer_held", "consumer_executing", "consumer_lag", "consumer_store_duration_seconds"] {
        assert!(metrics.contains(&format!("\n{name}")), "{name} is missing in\n{metrics}");
    }
    assert_eq!(example.get("/elsewhere").0, 404);
}

#[test]
fn handlers_that_hang_show_in_the_liveness_probe() {
    let example = Example::start(&["--hang-after", "3", "--wedged-after", "300ms"]);
    let (_, said) = example.until("/live", |status, _| status == 503);
    assert!(said.contains("no delivery was finished for"), "{said}");
    assert_eq!(example.get("/ready").0, 503);
}

#[test]
fn it_listens_on_loopback() {
    assert!(Example::start(&[]).address.starts_with("127.0.0.1:"));
}
