//! What is wrong at the start: exit code 1 within 30 s, with the reason and without the password.

use std::{net::SocketAddr, time::Duration};

use consumer_testing::proxy::Proxy;
use tokio::time::timeout;
use xtask::servers::{Kafka, RabbitMq, Redis, free_port, shared_rabbitmq, shared_redis};

use crate::{
    common::{Done, Folder, PATIENCE, Running, mails, orders, run},
    topic::{Broker, Topic, on_both_brokers, order},
};

on_both_brokers!(a_broker_that_cannot_be_reached, a_broker_that_hangs);

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
    let topic = Topic::shared(Broker::Kafka, "missing");
    let done = consume(&topic.url, &topic.store, &topic.name);
    failed(&done, &[&topic.name, "does not exist", "orders produce"]);
    assert!(!topic.exists(&topic.dead()));
}

fn a_broker_that_cannot_be_reached(broker: Broker) {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let broker = match broker {
        Broker::Kafka => format!("kafka://{address}"),
        Broker::RabbitMq => format!("amqp://ann:s3cret@{address}/%2f"),
    };
    failed(&consume(&broker, "memory:", "orders"), &[&address]);
    failed(&run(["produce", "--broker", &broker]), &[&address]);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_cannot_be_reached() {
    let topic = Topic::shared(Broker::Kafka, "no-store");
    topic.publish(vec![order("1", "ann@example.com")]);
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let store = format!("redis://:s3cret@{address}");
    failed(&consume(&topic.url, &store, &topic.name), &[&address]);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_does_not_answer() {
    let topic = Topic::shared(Broker::Kafka, "store-hangs");
    topic.publish(vec![order("1", "ann@example.com")]);
    let redis = Redis::start().unwrap();
    redis.pause();
    let address = redis.url().trim_start_matches("redis://").to_owned();
    failed(&consume(&topic.url, &redis.url(), &topic.name), &[&address]);
    redis.resume();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_store_that_refuses_the_password() {
    let topic = Topic::shared(Broker::Kafka, "no-password");
    topic.publish(vec![order("1", "ann@example.com")]);
    let redis = Redis::builder().password("right").start().unwrap();
    let broker = &*topic.url;
    let wrong = redis.url().replace(":right@", ":s3cret@");
    failed(&consume(broker, &wrong, &topic.name), &["password"]);
    let none = redis.url().replace(":right@", "");
    failed(&consume(broker, &none, &topic.name), &["password"]);
    consume(broker, &redis.url(), &topic.name).ok();
}

fn a_broker_that_hangs(broker: Broker) {
    let server = broker.start();
    server.pause();
    let url = server.url();
    let address = url.trim_start_matches("kafka://").trim_start_matches("amqp://guest:guest@");
    let address = address.trim_end_matches("/%2f");
    failed(&consume(&url, "memory:", "orders"), &[address]);
    failed(&run(["produce", "--broker", &url]), &[address]);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn kafka_refuses_the_password() {
    let kafka = Kafka::builder().sasl_plain("ann", "right").start().unwrap();
    let broker = |password: &str| format!("kafka://ann:{password}@{}", kafka.bootstrap());
    let redis = shared_redis();
    failed(&consume(&broker("s3cret"), &redis, "orders"), &[&kafka.bootstrap(), "password"]);
    failed(&run(["produce", "--broker", &broker("s3cret")]), &[&kafka.bootstrap()]);
    run(["produce", "--broker", &broker("right"), "--topic", "orders", "--count", "3"]).ok();
    assert_eq!(consume(&broker("right"), &redis, "orders").ok().number("received"), 3);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn rabbitmq_refuses_the_password_and_has_no_such_vhost() {
    let rabbitmq = RabbitMq::builder().user("ann", "right").start().unwrap();
    let broker =
        |password: &str, vhost: &str| format!("amqp://ann:{password}@127.0.0.1:{}/{vhost}", rabbitmq.port());
    let address = format!("127.0.0.1:{}", rabbitmq.port());
    let redis = shared_redis();
    let wrong = broker("s3cret", "%2f");
    let because = [&*address, "refuses the user or the password", "`ann`"];
    failed(&consume(&wrong, &redis, "orders"), &because);
    failed(&run(["produce", "--broker", &wrong]), &because);
    let nowhere = broker("right", "nowhere");
    failed(&consume(&nowhere, &redis, "orders"), &[&address, "no vhost `nowhere`"]);
    failed(&run(["produce", "--broker", &nowhere]), &[&address, "no vhost `nowhere`"]);
    let right = broker("right", "%2f");
    run(["produce", "--broker", &right, "--topic", "orders", "--count", "3"]).ok();
    assert_eq!(consume(&right, &redis, "orders").ok().number("received"), 3);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn rabbitmq_comes_late() {
    let rabbitmq = shared_rabbitmq();
    let address = rabbitmq.rsplit_once('@').unwrap().1.trim_end_matches("/%2f");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(address.parse::<SocketAddr>().unwrap())).unwrap();
    let url = rabbitmq.replace(address, &proxy.addr().to_string());
    let topic = Topic::on(&url, &shared_redis(), "late");
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let more = [vec!["--count", "3"], vec!["--until-idle", "1s", "--mail-log", log.to_str().unwrap()]];
    for (command, more) in ["produce", "consume"].into_iter().zip(more) {
        proxy.refuse();
        let refused = proxy.counts().refused;
        let arguments = topic.arguments(command);
        let running =
            Running::start(&mut orders(arguments.iter().map(String::as_str).chain(more.iter().copied())));
        let tried_twice = proxy.until(|counts| counts.refused >= refused + 2);
        let tried_twice = runtime.block_on(async { timeout(PATIENCE, tried_twice).await });
        assert!(tried_twice.is_ok(), "{:?}", running.wait());
        proxy.accept();
        running.wait().ok();
    }
    assert_eq!(mails(&log).len(), 3);
}
