//! What is wrong with the command line is found without the network, said in words, and ends with exit code 2.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use common::{Done, Folder, Running, orders, run};

#[track_caller]
fn refused<'a>(arguments: impl IntoIterator<Item = &'a str>, because: &str) {
    check(&run(arguments), because);
}

#[track_caller]
fn check(done: &Done, because: &str) {
    assert_eq!(done.code(), Some(2), "{done:?}");
    assert!(done.stderr.contains(because), "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    assert!(!done.stderr.contains("s3cret"), "{done:?}");
}

#[test]
fn unknown_commands_options_and_values() {
    refused(["consum"], "consume");
    refused(["consume", "--no-such-option"], "--no-such-option");
    refused(["consume", "--backoff", "5"], "followed by ms, s, m or h");
    refused(["consume", "--max-in-flight", "0"], "--max-in-flight");
    refused(["consume", "--attempts", "0"], "--attempts");
    refused(["consume", "--lease", "0s"], "--lease");
    refused(["consume", "--ordering", "random"], "none, partition, key");
    refused(["consume", "--topic", ""], "--topic");
    refused(["produce", "--duplicates", "1.5"], "from 0 to 1");
    refused(["produce", "--count", "many"], "--count");
}

#[test]
fn kinds_exclude_each_other() {
    let produce = ["produce", "--broker", "kafka://127.0.0.1:1"];
    if cfg!(feature = "kafka") {
        refused(produce.into_iter().chain(["--flaky", "0.6", "--bouncing", "0.6"]), "exclude each other");
        refused(produce.into_iter().chain(["--duplicates", "0.5", "--flaky", "0.5"]), "leave none");
    }
}

#[test]
fn a_broker_in_memory_has_nobody_to_share_it_with() {
    refused(["consume"], "lives in one process");
    refused(["produce"], "lives in one process");
    refused(["consume", "--broker", "memory:", "--store", "memory:"], "lives in one process");
}

#[test]
fn urls_of_unknown_kinds() {
    refused(["produce", "--broker", "http://ann:s3cret@localhost"], "http:// is no URL of a broker");
    refused(["consume", "--broker", "ann:s3cret@localhost"], "has no scheme that is known");
    let broker = if cfg!(feature = "kafka") { "kafka://127.0.0.1:1" } else { "memory:" };
    if cfg!(feature = "kafka") {
        let consume = ["consume", "--broker", broker, "--store"];
        refused(consume.into_iter().chain(["mysql://ann:s3cret@h/x"]), "mysql:// is no URL of a store");
    }
}

#[test]
fn a_url_whose_feature_is_not_compiled_in_names_it() {
    if !cfg!(feature = "kafka") {
        refused(["consume", "--broker", "kafka://ann:s3cret@127.0.0.1:1"], "the feature `kafka`");
        refused(["produce", "--broker", "kafka+tls://ann:s3cret@127.0.0.1:1"], "the feature `kafka`");
    }
    if !cfg!(feature = "amqp") {
        refused(["consume", "--broker", "amqp://ann:s3cret@127.0.0.1:1/%2f"], "the feature `amqp`");
        refused(["produce", "--broker", "amqps://ann:s3cret@127.0.0.1:1"], "the feature `amqp`");
    }
    if cfg!(feature = "kafka") && !cfg!(feature = "redis") {
        let consume =
            ["consume", "--broker", "kafka://127.0.0.1:1", "--store", "redis://:s3cret@127.0.0.1:1"];
        refused(consume, "the feature `redis`");
    }
    if cfg!(feature = "kafka") && !cfg!(feature = "postgres") {
        let consume =
            ["consume", "--broker", "kafka://127.0.0.1:1", "--store", "postgres://ann:s3cret@127.0.0.1:1/x"];
        refused(consume, "the feature `postgres`");
    }
}

#[cfg(all(feature = "kafka", feature = "redis"))]
#[test]
fn urls_and_names_that_are_malformed() {
    let consume = |broker, store| ["consume", "--broker", broker, "--store", store];
    let (broker, store) = ("kafka://127.0.0.1:1", "memory:");
    refused(consume("kafka://ann:s3cret@127.0.0.1:port", store), "port");
    refused(consume("kafka://", store), "host:port");
    refused(consume("kafka://127.0.0.1:1?enable.auto.commit=true", store), "enable.auto.commit");
    refused(consume(broker, "redis://:s3cret@127.0.0.1:port"), "port");
    if cfg!(feature = "postgres") {
        refused(consume(broker, "postgres://ann:s3cret@127.0.0.1:port/x"), "port");
    }
    refused(consume(broker, store).into_iter().chain(["--topic", "no such name"]), "no such name");
    refused(consume(broker, store).into_iter().chain(["--topic", "a", "--dead-letter", "a"]), "come back");
    refused(
        consume(broker, store).into_iter().chain(["--mail-log", "/no/such/folder/mails.jsonl"]),
        "/no/such/folder",
    );
}

#[cfg(all(feature = "amqp", feature = "redis"))]
#[test]
fn urls_names_and_numbers_that_rabbitmq_does_not_take() {
    let consume = ["consume", "--broker", "amqp://ann:s3cret@127.0.0.1:1/%2f"];
    let with = |option: &'static str, value: &'static str| consume.into_iter().chain([option, value]);
    refused(["consume", "--broker", "amqp://ann:s3cret@127.0.0.1:port/%2f"], "port");
    refused(["produce", "--broker", "amqp://"], "host");
    refused(["produce", "--broker", "amqps://ann:s3cret@127.0.0.1:1/a/b"], "vhost");
    refused(with("--dead-letter", "orders.placed"), "come back");
    refused(["produce", "--broker", "amqp://h", "--dead-letter", "orders.placed"], "come back");
    refused(with("--max-in-flight", "2001"), "lower max_in_flight");
    refused(with("--store", "redis://127.0.0.1:port"), "port");
}

#[test]
fn delayed_retry_is_refused_where_it_cannot_be_had() {
    let with = |broker, more: &[&str]| {
        let all = [&["consume", "--broker", broker, "--delays", "10s,1m"][..], more].concat();
        run(all).stderr
    };
    assert!(with("kafka://h:1", &["--group", "order mails"]).contains("order mails.retry.10s"));
    for broker in ["kafka://h:1", "amqp://h:1"] {
        assert!(with(broker, &["--ordering", "partition"]).contains("exclude each other"));
    }
    refused(["consume", "--delays", "10s,soon"], "duration");
}

#[test]
fn every_option_can_be_an_environment_variable() {
    let with = |name: &str, value: &str| Running::start(orders(["consume"]).env(name, value)).wait();
    check(&with("BROKER_URL", "http://ann:s3cret@h"), "http:// is no URL of a broker");
    check(&with("MAX_IN_FLIGHT", "many"), "many");
    check(&with("UNTIL_IDLE", "soon"), "soon");
    check(&with("REPAIRED", "maybe"), "maybe");
    check(&with("DELAYS", "soon"), "soon");
    // Those given on the command line win, and an empty one is none.
    check(&with("DELAYS", ""), "lives in one process");
    let both = orders(["consume", "--broker", "memory:"]).env("BROKER_URL", "http://h").output().unwrap();
    assert!(String::from_utf8_lossy(&both.stderr).contains("lives in one process"));
}

#[test]
fn help_shows_no_password_from_the_environment() {
    let help = orders(["consume", "--help"]).env("BROKER_URL", "kafka://ann:s3cret@h").output().unwrap();
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success() && text.contains("BROKER_URL") && !text.contains("s3cret"), "{text}");
}

#[test]
fn a_refused_command_line_leaves_no_file() {
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let log_option = ["--mail-log", log.to_str().unwrap()];
    refused(["consume"].into_iter().chain(log_option), "lives in one process");
    if cfg!(all(feature = "kafka", feature = "redis")) {
        let consume = ["consume", "--broker", "kafka://127.0.0.1:1", "--store", "redis://127.0.0.1:port"];
        refused(consume.into_iter().chain(log_option), "port");
    }
    assert!(!log.exists());
}
