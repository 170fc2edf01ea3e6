//! Signals.

use std::{collections::HashSet, path::Path, time::Duration};

use consumer::Message;

use crate::{
    common::{Done, Folder, Running, mails, orders, unique, wait_for},
    topic::{Broker, Topic, on_both_brokers, order},
};

on_both_brokers!(
    a_signal_lets_what_runs_finish_and_a_restart_goes_on_there,
    fm25_what_the_drain_cuts_off_is_returned_and_runs_again,
    a_second_signal_ends_it_at_once,
);

fn good(count: usize) -> Vec<Message> {
    (0..count).map(|nth| order(&unique(&nth.to_string()), "ann@example.com")).collect()
}

fn start(topic: &Topic, folder: &Folder, options: &str) -> Running {
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), folder.path("mails.jsonl").to_str().unwrap().to_owned()]);
    arguments.extend(options.split(' ').map(str::to_owned));
    Running::start(&mut orders(arguments.iter().map(String::as_str)))
}

/// Resolves while handlers run: some have finished, so others have begun since, and each takes `delay`.
fn while_handlers_run(log: &Path, mails_before: usize, delay: Duration) {
    wait_for("a mail", || mails(log).len() > mails_before);
    // Nothing outside tells that the next ones were delivered.
    std::thread::sleep(delay / 4);
}

/// Everything that was received is accounted for.
#[track_caller]
fn adds_up(done: &Done) {
    let parts = ["processed", "duplicates", "deferred", "dead_lettered", "returned"];
    assert_eq!(done.number("received"), parts.iter().map(|name| done.number(name)).sum::<u64>(), "{done:?}");
}

fn a_signal_lets_what_runs_finish_and_a_restart_goes_on_there(broker: Broker) {
    let topic = Topic::shared(broker, "drain");
    topic.publish(good(60));
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    for signal in ["TERM", "INT"] {
        let before = mails(&log).len();
        let consumer = start(&topic, &folder, "--max-in-flight 8 --handler-delay 2s");
        while_handlers_run(&log, before, Duration::from_secs(2));
        consumer.signal(signal);
        let done = consumer.wait().ok();
        adds_up(&done);
        assert!((1..=8).contains(&done.number("in_flight_at_stop")), "{done:?}");
        // All of them had time to finish.
        assert_eq!(done.number("returned"), 0, "{done:?}");
        assert_eq!(done.number("processed"), (mails(&log).len() - before) as u64);
    }
    let rest = start(&topic, &folder, "--until-idle 2s").wait().ok();
    adds_up(&rest);
    let sent = mails(&log);
    let ids: HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (60, 60), "{rest:?}");
}

fn fm25_what_the_drain_cuts_off_is_returned_and_runs_again(broker: Broker) {
    let topic = Topic::shared(broker, "cut-off");
    topic.publish(good(9));
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let consumer = start(&topic, &folder, "--handler-delay 2s --drain 300ms --max-in-flight 2 --lease 5s");
    while_handlers_run(&log, 0, Duration::from_secs(2));
    consumer.signal("TERM");
    let done = consumer.wait().ok();
    adds_up(&done);
    assert_eq!(done.number("returned"), done.number("in_flight_at_stop"), "{done:?}");
    assert!(done.number("returned") >= 1, "{done:?}");
    // Handed back, not left to expire: a restart takes them at once, as first attempts, and nobody is a suspect.
    let rest = start(&topic, &folder, "--until-idle 2s").wait().ok();
    let sent = mails(&log);
    let ids: HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (9, 9), "{rest:?}");
    assert!(sent.iter().all(|mail| mail.attempt == 1), "{sent:?}");
}

fn a_second_signal_ends_it_at_once(broker: Broker) {
    let topic = Topic::shared(broker, "twice");
    topic.publish(good(4));
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut consumer = start(&topic, &folder, "--handler-delay 3s --drain 200s --max-in-flight 1");
    while_handlers_run(&log, 0, Duration::from_secs(3));
    consumer.signal("TERM");
    // The drain lasts until the handler ends.
    std::thread::sleep(Duration::from_millis(500));
    assert!(consumer.is_running());
    consumer.signal("TERM");
    let done = consumer.wait();
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert_eq!(done.stdout, "");
    assert!(done.stderr.contains("second signal"), "{done:?}");
}
