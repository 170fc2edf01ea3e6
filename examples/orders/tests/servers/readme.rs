//! The README's failure and its way back, as it is printed there.

use std::{path::Path, process::Command};

use crate::{
    common::{Folder, Running, orders},
    topic::{Broker, Topic, on_both_brokers},
};

on_both_brokers!(the_way_back_is_as_the_readme_shows_it);

const README: &str = include_str!("../../../../README.md");

/// The commands of the section, each with what it prints.
fn shown() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let section = README.split("\n## When a message fails, and its way back\n").nth(1).unwrap();
    let block = section.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let mut commands: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push((command.split(' ').collect(), Vec::new())),
            None => commands.last_mut().unwrap().1.push(line),
        }
    }
    commands
}

/// Without what differs from run to run: times, and the widths of columns.
fn comparable(line: &str, topic: &Topic) -> String {
    let line = line.replace(&topic.name, "orders.placed");
    let is_time = |word: &str| consumer::message::wire::parse_time(word).is_ok();
    let words = line.split_whitespace().map(|word| if is_time(word) { "TIME" } else { word });
    words.collect::<Vec<_>>().join(" ").replace(" order-mails ", " orders.placed ")
}

fn the_way_back_is_as_the_readme_shows_it(broker: Broker) {
    let topic = Topic::shared(broker, "readme");
    let folder = Folder::new();
    let commands = shown();
    assert_eq!(commands.len(), 6, "{commands:?}");
    for (words, expected) in commands {
        let words: Vec<String> =
            words.iter().map(|word| word.replace("orders.placed", &topic.name)).collect();
        let arguments = words[1..].iter().map(String::as_str);
        let mut command = orders(arguments.clone());
        if words[0] == "consumer-admin" {
            let program = Path::new(env!("CARGO_BIN_EXE_orders")).with_file_name("consumer-admin");
            assert!(program.exists(), "build it first: cargo build -p consumer-admin");
            command = Command::new(program);
            command.args(arguments).env_clear().stdout(std::process::Stdio::piped());
            command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        }
        command.env("BROKER_URL", &topic.url).env("STORE_URL", &topic.store).env("TOPIC", &topic.name);
        command.env("GROUP", &topic.name).env("MAIL_LOG", folder.path("mails.jsonl"));
        let done = Running::start(&mut command).wait().ok();
        let mut printed: Vec<_> = done.stdout.lines().map(|line| comparable(line, &topic)).collect();
        let mut expected: Vec<_> = expected.iter().map(|line| comparable(line, &topic)).collect();
        // On RabbitMQ letters lie in the order in which they failed, and their places are not those of Kafka.
        for lines in [&mut printed, &mut expected] {
            for line in lines.iter_mut().filter(|_| words[2..].first().is_some_and(|word| word == "list")) {
                *line = line.split_once(' ').map_or(line.clone(), |(_, rest)| rest.to_owned());
            }
            lines.sort();
        }
        assert_eq!(printed, expected, "{words:?}: {}", done.stderr);
    }
}
