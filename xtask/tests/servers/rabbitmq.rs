//! RabbitMQ.

use crate::{amqp::Client, handshake, processes};
use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};
use xtask::servers::{RabbitMq, remove_abandoned};

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn rabbitmq_keeps_what_is_durable_over_a_kill_and_a_stop() {
    let rabbitmq = RabbitMq::start().unwrap();
    let url = rabbitmq.url();
    let log_on = || Client::log_on(rabbitmq.port(), "guest", "guest");
    let mut client = log_on().unwrap();
    for kind in ["classic", "quorum"] {
        client.queue(kind, kind).unwrap();
        client.publish(kind, b"hello").unwrap();
    }
    rabbitmq.sync().unwrap();
    rabbitmq.kill();
    assert!(!rabbitmq.is_running());
    assert!(log_on().is_err());
    assert!(rabbitmq.ctl(&["list_queues"]).is_err());
    rabbitmq.start_again().unwrap();
    assert!(rabbitmq.start_again().is_err(), "it is running");
    assert_eq!(rabbitmq.url(), url);
    let mut client = log_on().unwrap();
    for kind in ["classic", "quorum"] {
        client.delivery(kind).unwrap();
    }
    rabbitmq.stop();
    assert!(log_on().is_err());
    rabbitmq.start_again().unwrap();
    let mut client = log_on().unwrap();
    for kind in ["classic", "quorum"] {
        client.delivery(kind).unwrap();
    }
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_rabbitmq_takes_options_a_user_and_a_short_consumer_timeout() {
    let password = r##"s3"c#r\e't @/:é"##;
    let rabbitmq = RabbitMq::builder()
        .option("heartbeat", "7")
        .user("ann", password)
        .consumer_timeout(Duration::from_millis(500))
        .start()
        .unwrap();
    assert!(rabbitmq.ctl(&["environment"]).unwrap().contains("{heartbeat,7}"));
    assert_eq!(rabbitmq.ctl(&["list_users"]).unwrap(), "ann\t[administrator]");
    assert!(Client::log_on(rabbitmq.port(), "guest", "guest").is_err());
    assert!(!format!("{rabbitmq:?}").contains("s3"));

    let mut client = Client::log_on(rabbitmq.port(), "ann", password).unwrap();
    client.queue("orders", "quorum").unwrap();
    client.publish("orders", b"hello").unwrap();
    const PRECONDITION_FAILED: u16 = 406;
    client.delivery("orders").unwrap();
    assert_eq!(client.closed().unwrap(), PRECONDITION_FAILED);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_paused_rabbitmq_answers_after_it_is_resumed() {
    let rabbitmq = RabbitMq::start().unwrap();
    rabbitmq.pause();
    let mut client = TcpStream::connect(("127.0.0.1", rabbitmq.port())).unwrap();
    client.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0; 8]).is_err());
    rabbitmq.resume();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    client.read_exact(&mut [0; 8]).unwrap();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_bad_option_of_rabbitmq_is_an_error_with_the_reason() {
    let error = RabbitMq::builder().option("no_such_option", "1").start().unwrap_err();
    assert!(error.to_string().contains("no_such_option"), "{error}");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn two_rabbitmqs_run_side_by_side_and_listen_on_loopback_only() {
    let (one, two) = (RabbitMq::start().unwrap(), RabbitMq::builder().tls().start().unwrap());
    one.ctl(&["add_vhost", "orders"]).unwrap();
    assert_eq!(one.ctl(&["list_vhosts"]).unwrap().lines().count(), 2);
    assert_eq!(two.ctl(&["list_vhosts"]).unwrap(), "/");
    let mut addresses = processes::listening(&processes::with_home(&home(&one)));
    addresses.extend(processes::listening(&processes::with_home(&home(&two))));
    // At least: clients, rabbitmqctl and the port mapper, and clients with TLS on one of them.
    assert!(addresses.len() >= 7, "{addresses:?}");
    let is_loopback =
        |address: &String| ["0100007F", "00000000000000000000000001000000"].contains(&&**address);
    assert!(addresses.iter().all(is_loopback), "{addresses:?}");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn rabbitmq_speaks_tls_and_checks_client_certificates() {
    let rabbitmq = RabbitMq::builder().tls_with_client_certificate().start().unwrap();
    let address = format!("127.0.0.1:{}", rabbitmq.tls_port().unwrap());
    assert_eq!(rabbitmq.tls_url().unwrap(), format!("amqps://guest:guest@{address}/%2f"));
    let files = rabbitmq.certificates().unwrap();
    assert!(handshake(&address, files));
    // In TLS 1.3 the refusal comes after the handshake, so what counts is whether AMQP is spoken.
    let (certificate, key) = (files.client_certificate(), files.client_key());
    assert!(answers_through_tls(&address, &["-cert".as_ref(), &certificate, "-key".as_ref(), &key]));
    assert!(!answers_through_tls(&address, &[]));
    assert!(Client::log_on(rabbitmq.port(), "guest", "guest").is_ok());
}

/// Set in the process that is killed.
const IS_KILLED: &str = "CONSUMER_TEST_IS_KILLED";

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn nothing_of_rabbitmq_is_left_after_a_drop_and_after_a_kill_of_the_test() {
    let rabbitmq = RabbitMq::start().unwrap();
    let dir = home(&rabbitmq);
    if env::var_os(IS_KILLED).is_some() {
        println!("\nhome {}", dir.display());
        loop {
            thread::park();
        }
    }
    assert!(processes::with_home(&dir).len() >= 2, "a server and a port mapper");
    drop(rabbitmq);
    processes::wait_until_none(&dir);
    assert!(!dir.exists());

    let name = "rabbitmq::nothing_of_rabbitmq_is_left_after_a_drop_and_after_a_kill_of_the_test";
    let mut other = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--include-ignored", "--nocapture"])
        .env(IS_KILLED, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap);
    let dir = lines.find_map(|line| line.strip_prefix("home ").map(PathBuf::from)).unwrap();
    assert!(processes::with_home(&dir).len() >= 2, "a server and a port mapper");
    other.kill().unwrap();
    other.wait().unwrap();
    processes::wait_until_none(&dir);
    remove_abandoned();
    assert!(!dir.exists());
}

/// The folder of a server, which is the home of all its processes.
fn home(rabbitmq: &RabbitMq) -> PathBuf {
    rabbitmq.log().parent().unwrap().to_owned()
}

/// Whether AMQP's header is answered, by way of another program's TLS.
fn answers_through_tls(address: &str, options: &[&Path]) -> bool {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", address])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One that was refused has ended, perhaps before this.
    let mut input = client.stdin.take().unwrap();
    let _ = input.write_all(b"AMQP\x00\x00\x09\x01");
    let answered = client.stdout.take().unwrap().read_exact(&mut [0; 8]).is_ok();
    client.kill().unwrap();
    client.wait().unwrap();
    answered
}
