//! What is wrong at the start: exit code 1 within 30 s, with the reason and without the password.

use std::time::Duration;

use xtask::servers::{Kafka, Redis, free_port};

use crate::{
    common::{Done, Folder, run},
    topic::{Topic, order},
};

#[track_caller]
fn failed(done: &Done, because: &[&str]) {
    assert_eq!(done.code(), Some(1), "{done:?}");
    for because in because {
        assert!(done.stderr.contains(because), "{because}: {}", done.stderr);
    }
    assert!(!done.stderr.contains("s3cret") && done.took < Duration::from_secs(30), "{done:?}");
    assert_eq!(done.stdout, "");
}

/// `consume` with this broker and store.
fn consume(broker: &str, store: &str, topic: &str) -> Done {
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let log = log.to_str().unwrap();
    run([
        "consume",
        "--broker",
        broker,
        "--store",
        store,
        "--topic",
        topic,
        "--mail-log",
        log,
        "--until-idle",
        "1s",
    ])
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_missing_topic() {
    let topic = Topic::shared("missing");
    let done = consume(&format!("kafka://{}", topic.broker), &topic.store, &topic.name);
    failed(&done, &[&topic.name, "does not exist", "orders produce"]);
    assert_eq!(topic.partitions(&topic.dead()), None);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_broker_that_cannot_be_reached() {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let broker = format!("kafka://{address}");
    failed(&consume(&broker, "memory:", "orders"), &[&address]);
    failed(&run(["produce", "--broker", &broker]), &[&address]);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_cannot_be_reached() {
    let topic = Topic::shared("no-store");
    topic.publish(vec![order("1", "ann@example.com")]);
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let store = format!("redis://:s3cret@{address}");
    failed(&consume(&format!("kafka://{}", topic.broker), &store, &topic.name), &[&address]);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_does_not_answer() {
    let topic = Topic::shared("store-hangs");
    topic.publish(vec![order("1", "ann@example.com")]);
    let redis = Redis::start().unwrap();
    redis.pause();
    let address = redis.url().trim_start_matches("redis://").to_owned();
    failed(&consume(&format!("kafka://{}", topic.broker), &redis.url(), &topic.name), &[&address]);
    redis.resume();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_refuses_the_password() {
    let topic = Topic::shared("no-password");
    topic.publish(vec![order("1", "ann@example.com")]);
    let redis = Redis::builder().password("right").start().unwrap();
    let broker = format!("kafka://{}", topic.broker);
    let wrong = redis.url().replace(":right@", ":s3cret@");
    failed(&consume(&broker, &wrong, &topic.name), &["password"]);
    let none = redis.url().replace(":right@", "");
    failed(&consume(&broker, &none, &topic.name), &["password"]);
    consume(&broker, &redis.url(), &topic.name).ok();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_broker_that_refuses_the_password() {
    let kafka = Kafka::builder().sasl_plain("ann", "right").start().unwrap();
    let broker = |password: &str| format!("kafka://ann:{password}@{}", kafka.bootstrap());
    let redis = xtask::servers::shared_redis();
    failed(&consume(&broker("s3cret"), &redis, "orders"), &[&kafka.bootstrap(), "password"]);
    failed(&run(["produce", "--broker", &broker("s3cret")]), &[&kafka.bootstrap()]);
    run(["produce", "--broker", &broker("right"), "--topic", "orders", "--count", "3"]).ok();
    assert_eq!(consume(&broker("right"), &redis, "orders").ok().number("received"), 3);
}
