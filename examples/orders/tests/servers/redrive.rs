//! What was set aside comes back: `consumer-admin` beside `orders`.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use consumer::Message;

use crate::{
    common::{Done, Folder, Mail, Running, mails, orders, wait_for},
    topic::{Broker, Topic, on_both_brokers, order},
};

on_both_brokers!(fm09_fm29_dead_letters_come_back_although_consumer_and_redrive_are_killed);

/// The program beside this one: all of the workspace is built before its tests run.
fn admin<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_orders")).with_file_name("consumer-admin");
    assert!(program.exists(), "build it first: cargo build -p consumer-admin");
    let mut command = Command::new(program);
    command.arg("dead-letters").args(arguments).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn dead_letters(topic: &Topic, command: &str, more: &str) -> Command {
    let dead = topic.dead();
    let arguments = [command, "--broker", &topic.url, "--from", &dead];
    admin(arguments.into_iter().chain(more.split(' ').filter(|word| !word.is_empty())))
}

fn list(topic: &Topic) -> Done {
    Running::start(&mut dead_letters(topic, "list", "--output json")).wait().ok()
}

const COUNT: usize = 10_000;
const TROUBLE: usize = 1_000;
const IN_FLIGHT: usize = 64;

struct Member {
    running: Option<Running>,
    mails: Vec<Mail>,
    killed_at: Option<SystemTime>,
}

fn fm09_fm29_dead_letters_come_back_although_consumer_and_redrive_are_killed(broker: Broker) {
    let topic = Topic::shared(broker, "redrive");
    topic.publish((0..COUNT).map(message).collect());
    let folder = Folder::new();
    let start = |nth: usize, more: &str| {
        let mut arguments = topic.arguments("consume");
        let log = folder.path(&format!("mails-{nth}.jsonl"));
        arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
        let options = format!(
            "--attempts 2 --backoff 10ms --lease 2s --max-in-flight {IN_FLIGHT} --rate 2500 --until-idle 8s{more}"
        );
        arguments.extend(options.split(' ').map(str::to_owned));
        (Running::start(&mut orders(arguments.iter().map(String::as_str))), log)
    };
    let mut members = Vec::new();
    for nth in 0..3 {
        let (running, log) = start(nth, "");
        let killed_at = if nth < 2 {
            wait_for("a part of the mails", || mails(&log).len() >= COUNT / 4);
            running.kill();
            Some(SystemTime::now())
        } else {
            running.wait().ok();
            None
        };
        members.push(Member { running: None, mails: mails(&log), killed_at });
    }
    let before: HashSet<&str> =
        members.iter().flat_map(|member| &member.mails).map(|mail| &*mail.message_id).collect();
    assert_eq!(before.len(), COUNT - TROUBLE);
    let listed = list(&topic).stdout;
    let ids: HashSet<String> = listed.lines().map(|line| text(line, "id")).collect();
    assert_eq!(ids.len(), TROUBLE, "each that failed is set aside");
    let permanent = listed.lines().filter(|line| text(line, "reason") == "permanent").count();
    assert!(permanent >= TROUBLE / 2, "{permanent}");

    // The provider is repaired, and the redrive is killed half way.
    let (running, log) = start(3, " --repaired");
    let redrive = Running::start(&mut dead_letters(&topic, "redrive", "--yes --rate 400"));
    wait_for("half of the mails", || mails(&log).len() >= TROUBLE / 2);
    redrive.kill();
    let again = Running::start(&mut dead_letters(&topic, "redrive", "--yes --output json")).wait().ok();
    let redriven = again.number("redriven") as usize;
    assert!(redriven > 0 && redriven < TROUBLE, "it was not killed in the middle: {redriven}");
    members.push(Member { running: Some(running), mails: Vec::new(), killed_at: None });
    let last = members.last_mut().unwrap();
    last.running.take().unwrap().wait().ok();
    last.mails = mails(&log);

    let mut by_id: HashMap<&str, Vec<(usize, &Mail)>> = HashMap::new();
    for (nth, member) in members.iter().enumerate() {
        for mail in &member.mails {
            by_id.entry(&mail.message_id).or_default().push((nth, mail));
        }
    }
    assert_eq!(by_id.len(), COUNT, "lost");
    for (id, times) in &mut by_id {
        times.sort_by_key(|(_, mail)| mail.epoch);
        for (nth, mail) in &times[..times.len() - 1] {
            let in_flight = members[*nth]
                .killed_at
                .is_some_and(|at| at.duration_since(mail.at).unwrap() < Duration::from_secs(1));
            assert!(in_flight, "{id} was mailed twice without need: {times:?}");
        }
    }
    assert_eq!(list(&topic).stdout, "", "none is left");
    let none = run_table(&topic);
    assert_eq!(none, "no dead letters\n");
}

fn run_table(topic: &Topic) -> String {
    Running::start(&mut dead_letters(topic, "list", "")).wait().ok().stdout
}

fn message(nth: usize) -> Message {
    let address = match nth % 20 {
        0 => "bounces",
        1 => "down",
        _ => "works",
    };
    order(&format!("m-{nth}"), &format!("x@{address}.example"))
}

fn text(line: &str, name: &str) -> String {
    let letter: serde_json::Value = serde_json::from_str(line).unwrap();
    letter[name].as_str().unwrap().to_owned()
}
