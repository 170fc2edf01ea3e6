//! Servers that stop while a consumer runs.

use std::{collections::HashSet, time::Duration};

use xtask::servers::{Redis, shared_redis};

use crate::{
    common::{Folder, Running, mails, orders, run, wait_for},
    topic::{Broker, Topic, on_both_brokers},
};

on_both_brokers!(
    fm31_redis_is_stopped_and_comes_back,
    fm31_redis_is_killed_and_restarted_at_once,
    fm31_without_redis_no_message_is_begun,
    redis_hangs_for_a_while,
    the_broker_is_restarted,
);

/// How long Redis is away; the long form is 20 s.
fn outage() -> Duration {
    let seconds = std::env::var("ORDERS_TEST_OUTAGE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Consumes `count` messages with an interruption by `disturb` half way; every one is mailed, none twice.
fn undisturbed_by(topic: &Topic, count: usize, options: &str, disturb: impl FnOnce()) {
    let mut produce = topic.arguments("produce");
    produce.extend(format!("--count {count} --seed 3").split(' ').map(str::to_owned));
    run(produce.iter().map(String::as_str)).ok();
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    arguments.extend(options.split(' ').map(str::to_owned));
    let mut consumer = Running::start(&mut orders(arguments.iter().map(String::as_str)));
    wait_for("half of the mails", || mails(&log).len() >= count / 2);
    disturb();
    assert!(consumer.is_running(), "an outage is waited out");
    let done = consumer.wait().ok();
    let sent = mails(&log);
    let ids: HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (count, count), "{done:?}");
    assert_eq!(done.number("processed"), count as u64, "{done:?}");
    assert_eq!(done.number("dead_lettered"), 0, "{done:?}");
}

fn fm31_redis_is_stopped_and_comes_back(broker: Broker) {
    let redis = Redis::builder().append_only().start().unwrap();
    let topic = Topic::on(&broker.shared(), &redis.url(), "redis-stopped");
    undisturbed_by(&topic, 2000, "--until-idle 3s --rate 300 --lease 60s", || {
        redis.stop();
        std::thread::sleep(outage());
        redis.start_again().unwrap();
    });
}

/// Nothing of what was recorded is lost, so nothing is mailed twice.
fn fm31_redis_is_killed_and_restarted_at_once(broker: Broker) {
    let redis = Redis::builder().append_only().start().unwrap();
    let topic = Topic::on(&broker.shared(), &redis.url(), "redis-killed");
    undisturbed_by(&topic, 2000, "--until-idle 3s --rate 1000 --lease 60s", || {
        redis.kill();
        redis.start_again().unwrap();
    });
}

/// What is mailed while Redis is away was in flight before.
fn fm31_without_redis_no_message_is_begun(broker: Broker) {
    let redis = Redis::builder().append_only().start().unwrap();
    let topic = Topic::on(&broker.shared(), &redis.url(), "redis-away");
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut produce = topic.arguments("produce");
    produce.extend("--count 2000 --seed 5".split(' ').map(str::to_owned));
    run(produce.iter().map(String::as_str)).ok();
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    arguments.extend("--max-in-flight 16 --handler-delay 10ms --lease 2s".split(' ').map(str::to_owned));
    let consumer = Running::start(&mut orders(arguments.iter().map(String::as_str)));
    wait_for("some mails", || mails(&log).len() >= 100);
    redis.stop();
    let before = mails(&log).len();
    // Longer than any claim lasts.
    std::thread::sleep(Duration::from_secs(5));
    let during = mails(&log).len() - before;
    assert!(during <= 16, "{during} mails without a store");
    assert_eq!(consumer.stop_and_wait("TERM").number("dead_lettered"), 0);
}

fn redis_hangs_for_a_while(broker: Broker) {
    let redis = Redis::start().unwrap();
    let topic = Topic::on(&broker.shared(), &redis.url(), "redis-hangs");
    undisturbed_by(&topic, 1000, "--until-idle 3s --rate 300 --lease 60s", || {
        redis.pause();
        std::thread::sleep(Duration::from_secs(5));
        redis.resume();
    });
}

fn the_broker_is_restarted(broker: Broker) {
    let server = broker.start();
    let topic = Topic::on(&server.url(), &shared_redis(), "broker-restarted");
    // Redelivered ones are duplicates, so only mails are counted one to one.
    let mut produce = topic.arguments("produce");
    produce.extend("--count 2000 --seed 4".split(' ').map(str::to_owned));
    run(produce.iter().map(String::as_str)).ok();
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    arguments.extend("--until-idle 6s --rate 300".split(' ').map(str::to_owned));
    let consumer = Running::start(&mut orders(arguments.iter().map(String::as_str)));
    wait_for("half of the mails", || mails(&log).len() >= 1000);
    server.kill();
    std::thread::sleep(Duration::from_secs(3));
    server.start_again();
    let done = consumer.wait().ok();
    let sent = mails(&log);
    let ids: HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (2000, 2000), "{done:?}");
    assert_eq!(done.number("dead_lettered"), 0, "{done:?}");
}
