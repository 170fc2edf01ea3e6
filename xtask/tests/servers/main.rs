//! Starts each kind of server for real.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod amqp;
mod postgres;
mod processes;
mod rabbitmq;

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};
use xtask::servers::{
    Certificates, Kafka, Redis, RedisCluster, RedisSentinel, shared_kafka, shared_postgres, shared_rabbitmq,
    shared_redis,
};

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn redis_restarts_on_its_port_without_its_data() {
    let redis = Redis::start().unwrap();
    let url = redis.url();
    assert_eq!(redis.cli(&["SET", "a", "1"]).unwrap(), "OK");
    redis.stop();
    assert!(redis.cli(&["PING"]).is_err());
    redis.start_again().unwrap();
    assert_eq!(redis.url(), url);
    assert_eq!(redis.cli(&["GET", "a"]).unwrap(), "");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn redis_keeps_its_data_on_request() {
    let redis = Redis::builder().append_only().start().unwrap();
    redis.cli(&["SET", "a", "1"]).unwrap();
    redis.kill();
    redis.start_again().unwrap();
    assert_eq!(redis.cli(&["GET", "a"]).unwrap(), "1");
    redis.kill();
    redis.start_again_empty().unwrap();
    assert_eq!(redis.cli(&["GET", "a"]).unwrap(), "");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn redis_takes_options_and_a_password() {
    let redis =
        Redis::builder().option("maxmemory-policy", "allkeys-lru").password("s3cret").start().unwrap();
    assert_eq!(redis.cli(&["CONFIG", "GET", "maxmemory-policy"]).unwrap(), "maxmemory-policy\nallkeys-lru");
    assert_eq!(redis.url(), format!("redis://:s3cret@127.0.0.1:{}", redis.port()));
    assert!(!format!("{redis:?}").contains("s3cret"));
    assert!(ask(redis.port(), b"PING\r\n").unwrap().starts_with("-NOAUTH"));
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_bad_option_is_an_error_with_the_reason() {
    let error = Redis::builder().option("no-such-option", "1").start().unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_paused_redis_answers_after_it_is_resumed() {
    let redis = Redis::start().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    redis.pause();
    client.write_all(b"PING\r\n").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0; 16]).is_err());
    redis.resume();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn redis_speaks_tls_only_and_checks_client_certificates() {
    let redis = Redis::builder().tls_with_client_certificate().start().unwrap();
    assert_eq!(redis.cli(&["PING"]).unwrap(), "PONG");
    assert!(redis.url().starts_with("rediss://127.0.0.1:"));
    let files = redis.certificates().unwrap();
    assert!(handshake(&format!("127.0.0.1:{}", redis.port()), files));
    assert!(!ask(redis.port(), b"PING\r\n").is_ok_and(|answer| answer.contains("PONG")));
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_redis_cluster_serves_all_slots_and_survives_a_restart_of_a_node() {
    let cluster = RedisCluster::start().unwrap();
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(cluster.cli(&["SET", key, "1"]).unwrap(), "OK");
    }
    let keys = |node: &Redis| node.cli(&["DBSIZE"]).unwrap().parse::<u32>().unwrap();
    assert_eq!(cluster.nodes().iter().map(keys).sum::<u32>(), 6);
    assert!(cluster.nodes().iter().all(|node| keys(node) > 0));
    cluster.nodes()[1].kill();
    cluster.nodes()[1].start_again().unwrap();
    cluster.wait_until_whole().unwrap();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_sentinel_fails_over_on_request_and_after_a_kill() {
    let set = RedisSentinel::start().unwrap();
    let first = set.primary().unwrap().port();
    assert_eq!(set.primary().unwrap().cli(&["SET", "a", "1"]).unwrap(), "OK");
    set.failover().unwrap();
    let second = set.primary().unwrap().port();
    assert_ne!(first, second);
    assert_eq!(set.primary().unwrap().cli(&["GET", "a"]).unwrap(), "1");

    let killed = set.primary().unwrap();
    killed.kill();
    set.wait_for_new_primary(second).unwrap();
    assert_eq!(set.primary().unwrap().port(), first);
    killed.start_again().unwrap();
    set.wait_until_replicated().unwrap();
    assert_eq!(killed.cli(&["GET", "a"]).unwrap(), "1");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn kafka_restarts_on_its_ports() {
    let kafka = Kafka::start().unwrap();
    let bootstrap = kafka.bootstrap();
    assert!(TcpStream::connect(&bootstrap).is_ok());
    kafka.stop();
    assert!(TcpStream::connect(&bootstrap).is_err());
    kafka.start_again().unwrap();
    kafka.kill();
    assert!(TcpStream::connect(&bootstrap).is_err());
    kafka.start_again().unwrap();
    assert!(TcpStream::connect(kafka.bootstrap()).is_ok());
    assert_eq!(kafka.bootstrap(), bootstrap);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn kafka_speaks_tls() {
    let kafka = Kafka::builder().tls().sasl_scram("ann", "s3cret").start().unwrap();
    assert!(handshake(&kafka.bootstrap(), kafka.certificates().unwrap()));
    assert!(TcpStream::connect(kafka.plain_bootstrap()).is_ok());
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn kafka_asks_for_a_password() {
    let password = r#"s3"cr\et"#;
    let kafka = Kafka::builder().sasl_plain("ann", password).start().unwrap();
    assert_eq!(sasl_plain(&kafka.bootstrap(), "ann", password).unwrap(), 0);
    assert_eq!(sasl_plain(&kafka.bootstrap(), "ann", "guess").unwrap(), SASL_AUTHENTICATION_FAILED);
}

const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// Logs on to a Kafka without TLS; gives the error code of the answer.
fn sasl_plain(address: &str, user: &str, password: &str) -> io::Result<i16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // SaslHandshake (17) version 1: a string with a length of two bytes.
    request(&mut stream, 17, 1, b"\0\x05PLAIN")?;
    let token = format!("\0{user}\0{password}");
    // SaslAuthenticate (36) version 0: bytes with a length of four.
    let mut body = u32::try_from(token.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    body.extend(token.as_bytes());
    request(&mut stream, 36, 0, &body)
}

/// One request of Kafka's protocol; gives the error code that stands first in the answer.
fn request(stream: &mut TcpStream, api: i16, version: i16, body: &[u8]) -> io::Result<i16> {
    let mut request = [api.to_be_bytes(), version.to_be_bytes()].concat();
    request.extend([0, 0, 0, 1, 0xff, 0xff]); // correlation id, no client id
    request.extend(body);
    stream.write_all(&u32::try_from(request.len()).map_err(io::Error::other)?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?];
    stream.read_exact(&mut answer)?;
    Ok(i16::from_be_bytes([answer[4], answer[5]]))
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn the_shared_servers_answer_and_stay() {
    let url = shared_redis();
    assert_eq!(shared_redis(), url);
    let done = Command::new("redis-cli").args(["-u", &url, "PING"]).output().unwrap();
    assert_eq!(done.stdout, b"PONG\n");
    let postgres = shared_postgres();
    assert_eq!(shared_postgres(), postgres);
    let done = Command::new("psql").args(["-XAt", "-d", &postgres, "-c", "SELECT 1"]).output().unwrap();
    assert_eq!(done.stdout, b"1\n");
    let rabbitmq = shared_rabbitmq();
    assert_eq!(shared_rabbitmq(), rabbitmq);
    let port = rabbitmq.strip_prefix("amqp://guest:guest@127.0.0.1:").unwrap().strip_suffix("/%2f").unwrap();
    amqp::Client::log_on(port.parse().unwrap(), "guest", "guest").unwrap();
    let kafka = shared_kafka();
    assert_eq!(shared_kafka(), kafka);
    // ApiVersions (18) version 0, which every client sends first.
    assert_eq!(request(&mut TcpStream::connect(kafka).unwrap(), 18, 0, b"").unwrap(), 0);
}

/// Whether a TLS handshake gives a certificate signed by the right authority, as another program than ours sees it.
fn handshake(address: &str, files: &Certificates) -> bool {
    let done = Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-verify_ip", "127.0.0.1", "-connect", address])
        .arg("-CAfile")
        .arg(files.authority())
        .arg("-cert")
        .arg(files.client_certificate())
        .arg("-key")
        .arg(files.client_key())
        .stdin(Stdio::null())
        .output();
    done.is_ok_and(|done| String::from_utf8_lossy(&done.stdout).contains("Verify return code: 0 (ok)"))
}

/// Sends one line and gives the first answer.
fn ask(port: u16, line: &[u8]) -> io::Result<String> {
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    client.write_all(line)?;
    let mut answer = [0; 256];
    let read = client.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}
