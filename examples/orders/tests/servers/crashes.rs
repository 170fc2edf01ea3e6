//! Processes that die.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use consumer::Message;
use xtask::servers::shared_redis;

use crate::{
    common::{Folder, Mail, Running, mails, orders, run, unique, wait_for},
    topic::{Broker, Topic, on_both_brokers, order},
};

on_both_brokers!(
    fm11_fm23_a_message_that_kills_the_process_is_set_aside_and_innocents_are_unharmed,
    fm02_two_members_killed_five_times_lose_nothing_and_repeat_only_what_was_in_flight,
    fm30_a_handler_that_outlives_its_lease_is_alone_with_its_message,
    members_that_come_and_go_lose_and_repeat_nothing,
);

fn consume(topic: &Topic, log: &std::path::Path, options: &str) -> Vec<String> {
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    arguments.extend(options.split(' ').map(str::to_owned));
    arguments
}

/// The first death makes it a suspect; after three more, running alone, it is set aside.
fn fm11_fm23_a_message_that_kills_the_process_is_set_aside_and_innocents_are_unharmed(broker: Broker) {
    let topic = Topic::shared(broker, "aborts");
    let mut messages: Vec<_> = (0..40).map(|_| order(&unique("innocent"), "ann@example.com")).collect();
    messages.insert(20, order("killer", "x@aborts.example"));
    topic.publish(messages);
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let options = "--attempts 3 --lease 1s --handler-delay 20ms --until-idle 3s";
    let mut deaths = 0;
    let done = loop {
        let arguments = consume(&topic, &log, options);
        let done = run(arguments.iter().map(String::as_str));
        if done.code() == Some(0) {
            break done;
        }
        // SIGABRT, not an exit code.
        assert_eq!(done.code(), None, "{done:?}");
        deaths += 1;
        assert!(deaths <= 4, "{done:?}");
    };
    assert_eq!(deaths, 4);
    assert_eq!(done.number("dead_lettered"), 1, "{done:?}");
    let dead = topic.dead_letters();
    assert_eq!(dead.len(), 1);
    let header = |name| dead[0].headers().get_str(name).unwrap();
    assert_eq!(dead[0].id().unwrap(), "killer");
    assert_eq!(header("dead-letter-reason"), "attempts-exhausted");
    assert_eq!(header("dead-letter-attempts"), "3");
    assert_eq!(header("dead-letter-error"), "process died 3 times while handling this message alone");
    let sent = mails(&log);
    let ids: std::collections::HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!(ids.len(), 40);
    assert!(sent.iter().all(|mail| mail.attempt == 1), "a crash is no failed call: {sent:?}");
}

/// How many messages the long test takes.
fn messages() -> usize {
    let count = std::env::var("ORDERS_TEST_MESSAGES").ok().and_then(|count| count.parse().ok());
    count.unwrap_or(20_000)
}

const IN_FLIGHT: usize = 64;
const LEASE: Duration = Duration::from_secs(2);
const RECORDED: Duration = Duration::from_secs(1);

/// A process with a mail log of its own, so that each mail is known by who sent it.
struct Member {
    running: Option<Running>,
    log: PathBuf,
    killed_at: Option<SystemTime>,
}

/// Two members, one of which is killed now and then.
struct Group<'a> {
    topic: &'a Topic,
    folder: &'a Folder,
    options: String,
    members: Vec<Member>,
}

impl Group<'_> {
    fn start(&mut self) {
        let log = self.folder.path(&format!("mails-{}.jsonl", self.members.len()));
        let arguments = consume(self.topic, &log, &self.options);
        let running = Running::start(&mut orders(arguments.iter().map(String::as_str)));
        self.members.push(Member { running: Some(running), log, killed_at: None });
    }

    fn kill_oldest(&mut self) {
        let member = self.members.iter_mut().find(|member| member.running.is_some()).unwrap();
        member.running.take().unwrap().kill();
        member.killed_at = Some(SystemTime::now());
    }

    fn sent(&self) -> usize {
        self.members.iter().map(|member| lines(&member.log)).sum()
    }
}

fn lines(log: &std::path::Path) -> usize {
    std::fs::read(log).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
}

fn fm02_two_members_killed_five_times_lose_nothing_and_repeat_only_what_was_in_flight(broker: Broker) {
    killed_five_times(&Topic::shared(broker, "killed"), || {});
}

/// RabbitMQ dies too, in the middle. What runs then may finish, and what comes again is known to the store: no mail is
/// repeated over that.
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm02_two_members_are_killed_five_times_and_rabbitmq_once() {
    let server = Broker::RabbitMq.start();
    killed_five_times(&Topic::on(&server.url(), &shared_redis(), "all-killed"), || {
        server.kill();
        server.start_again();
    });
}

/// Without any Redis: the members share a file.
#[cfg(feature = "sqlite")]
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm02_two_members_with_one_sqlite_file_are_killed_five_times() {
    let folder = Folder::new();
    let store = format!("sqlite:{}", folder.path("dedup.db").display());
    killed_five_times(&Topic::on(&Broker::Kafka.shared(), &store, "killed-sqlite"), || {});
}

/// Without any Redis: the members, which could be on several machines, share a database.
#[cfg(feature = "postgres")]
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm02_two_members_with_one_postgres_are_killed_five_times() {
    let store = xtask::servers::shared_postgres();
    killed_five_times(&Topic::on(&Broker::Kafka.shared(), &store, "killed-postgres"), || {});
}

/// Two members share a topic; the older one is killed and replaced five times, and half way `disturb` happens.
/// What was mailed longer than [`RECORDED`] before a kill is known to the store.
fn killed_five_times(topic: &Topic, disturb: impl Fn()) {
    let count = messages();
    let mut produce = topic.arguments("produce");
    produce.extend(format!("--count {count} --duplicates 0.2 --seed 11").split(' ').map(str::to_owned));
    let produced = run(produce.iter().map(String::as_str)).ok();
    let unique = produced.number("unique") as usize;

    let folder = Folder::new();
    // Slow enough that there is work left at every kill.
    let rate = (count / 80).max(5);
    let options = format!(
        "--until-idle 8s --lease {}s --max-in-flight {IN_FLIGHT} --handler-delay 5ms --rate {rate}",
        LEASE.as_secs()
    );
    let mut group = Group { topic, folder: &folder, options, members: Vec::new() };
    group.start();
    group.start();
    for nth in 1..=5 {
        let due = unique * nth / 8;
        wait_for("the next share of mails", || group.sent() >= due);
        group.kill_oldest();
        if nth == 3 {
            disturb();
        }
        group.start();
    }
    let mut reports = Vec::new();
    for member in &mut group.members {
        if let Some(running) = member.running.take() {
            reports.push(running.wait().ok());
        }
    }

    let mut repeated = vec![0; group.members.len()];
    // By id: who mailed it when.
    let mut by_id: HashMap<String, Vec<(usize, Mail)>> = HashMap::new();
    for (nth, member) in group.members.iter().enumerate() {
        for mail in mails(&member.log) {
            by_id.entry(mail.message_id.clone()).or_default().push((nth, mail));
        }
    }
    assert_eq!(by_id.len(), unique, "lost: {reports:?}");
    for (id, mut times) in by_id {
        times.sort_by_key(|(_, mail)| mail.epoch);
        // Whoever mailed it before somebody else did was killed right after that.
        for (nth, mail) in &times[..times.len() - 1] {
            let killed_at = group.members[*nth].killed_at;
            let in_flight = killed_at.is_some_and(|at| at.duration_since(mail.at).unwrap() < RECORDED);
            assert!(in_flight, "{id} was mailed twice without need: {times:?}, killed at {killed_at:?}");
            repeated[*nth] += 1;
        }
        assert!(times.windows(2).all(|pair| pair[0].1.epoch < pair[1].1.epoch), "{id}: {times:?}");
    }
    assert!(repeated.iter().all(|repeated| *repeated <= IN_FLIGHT), "more than was in flight: {repeated:?}");
    assert!(topic.dead_letters().is_empty(), "nobody is to blame for a SIGKILL");
}

/// Copies of one message, in every partition, for two processes, and a handler that takes three leases.
fn fm30_a_handler_that_outlives_its_lease_is_alone_with_its_message(broker: Broker) {
    let topic = Topic::shared(broker, "outlives");
    let copy = |key: usize| {
        let payload = r#"{"order_id":"o-1","email":"ann@example.com"}"#;
        Message::builder().payload(payload).key(key.to_string()).id("one").build()
    };
    topic.publish((0..16).map(copy).collect());
    let folder = Folder::new();
    // Fewer in flight than there are copies, so that both get some; idle for longer than Kafka's heartbeat, by which a
    // member learns that a partition has become its own.
    let options = "--lease 1s --handler-delay 3s --until-idle 6s --max-in-flight 8".to_owned();
    let mut group = Group { topic: &topic, folder: &folder, options, members: Vec::new() };
    group.start();
    group.start();
    let (mut mailed, mut duplicates) = (0, 0);
    for member in &mut group.members {
        let done = member.running.take().unwrap().wait().ok();
        mailed += mails(&member.log).len();
        duplicates += done.number("duplicates");
    }
    assert_eq!((mailed, duplicates), (1, 15));
}

fn members_that_come_and_go_lose_and_repeat_nothing(broker: Broker) {
    let count = messages();
    let topic = Topic::shared(broker, "come-and-go");
    let mut produce = topic.arguments("produce");
    produce.extend(format!("--count {count} --duplicates 0.2 --seed 12").split(' ').map(str::to_owned));
    let unique = run(produce.iter().map(String::as_str)).ok().number("unique") as usize;

    let folder = Folder::new();
    let rate = (count / 20).max(5);
    let options = format!("--until-idle 8s --max-in-flight 64 --handler-delay 5ms --rate {rate}");
    let mut group = Group { topic: &topic, folder: &folder, options, members: Vec::new() };
    group.start();
    let mut reports = Vec::new();
    for nth in 1..=3 {
        let due = unique * nth / 5;
        wait_for("the next share of mails", || group.sent() >= due);
        group.start();
        let oldest = group.members.iter_mut().find(|member| member.running.is_some()).unwrap();
        let leaving = oldest.running.take().unwrap();
        leaving.signal("TERM");
        reports.push(leaving.wait().ok());
    }
    for member in &mut group.members {
        if let Some(running) = member.running.take() {
            reports.push(running.wait().ok());
        }
    }
    let sent: Vec<Mail> = group.members.iter().flat_map(|member| mails(&member.log)).collect();
    let ids: std::collections::HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (unique, unique), "{reports:?}");
}
