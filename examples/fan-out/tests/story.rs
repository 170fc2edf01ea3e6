//! The story is the same on every broker, but for its end.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::process::{Command, Output};

fn tell(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fan-out")).args(arguments).env_remove("BROKER_URL").output().unwrap()
}

/// What it prints on this broker, under a topic of this run's own.
#[cfg(any(feature = "kafka", feature = "amqp"))]
fn told_on(broker: &str) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let done = tell(&["--broker", broker, "--topic", &format!("fan-out-{}", since.as_nanos())]);
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// The output that the documentation shows.
fn shown() -> String {
    let docs = include_str!("../src/main.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let block = docs.skip_while(|line| *line != " $ cargo run -p fan-out").skip(1);
    let lines = block.take_while(|line| *line != " ```").map(|line| line.strip_prefix(' ').unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn in_memory_it_is_as_the_documentation_shows() {
    let done = tell(&[]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8(done.stdout).unwrap(), shown());
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn on_kafka_it_is_the_same() {
    assert_eq!(told_on(&format!("kafka://{}", xtask::servers::shared_kafka())), shown());
}

#[cfg(feature = "amqp")]
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn on_rabbitmq_it_ends_without_a_replay() {
    let told = told_on(&xtask::servers::shared_rabbitmq());
    let (story, end) = told.trim_end().rsplit_once('\n').unwrap();
    assert!(shown().starts_with(&format!("{story}\n")), "{told}");
    assert!(end.contains("cannot be replayed"), "{told}");
}

#[test]
fn a_url_that_is_of_no_use_is_refused_without_being_shown() {
    for (url, said) in
        [("ann:s3cret@h", "begins with"), ("kafka://", "kafka"), ("amqp://u:s3cret@h:x", "amqp")]
    {
        let done = tell(&["--broker", url]);
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(said) && !stderr.contains("s3cret"), "{stderr}");
    }
}
