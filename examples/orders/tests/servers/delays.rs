//! Delayed retry: what still fails waits at the broker.

use std::collections::HashSet;

use consumer::Message;

use crate::{
    common::{Folder, Running, mails, orders, run, unique, wait_for},
    topic::{Broker, Topic, on_both_brokers, order},
};

on_both_brokers!(
    fm10_fm34_what_waits_at_the_broker_outlives_a_killed_process_and_is_mailed_once,
    fm22_later_orders_of_a_key_wait_behind_the_one_that_waits_at_the_broker,
);

/// A provider that is down for two attempts, a process that is killed while copies wait, and one that goes on.
fn fm10_fm34_what_waits_at_the_broker_outlives_a_killed_process_and_is_mailed_once(broker: Broker) {
    let topic = Topic::shared(broker, "delays");
    let mut messages: Vec<_> = (0..30).map(|_| order(&unique("good"), "ann@example.com")).collect();
    messages.extend((0..20).map(|_| order(&unique("flaky"), "ben@flaky.example")));
    messages.extend((0..5).map(|_| order(&unique("down"), "x@down.example")));
    messages.extend((0..5).map(|_| order(&unique("bounced"), "x@bounces.example")));
    let ids: HashSet<String> = messages[..50]
        .iter()
        .map(|message| String::from_utf8(message.id().unwrap().to_vec()).unwrap())
        .collect();
    topic.publish(messages);
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    let options = "--attempts 1 --delays 3s,4s --lease 1s --until-idle 8s";
    arguments.extend(options.split(' ').map(str::to_owned));
    let first = Running::start(&mut orders(arguments.iter().map(String::as_str)));
    // All good ones are mailed, so the others have failed once and wait, or are about to.
    wait_for("the good ones", || mails(&log).len() >= 30);
    first.kill();
    let done = run(arguments.iter().map(String::as_str)).ok();
    // Two for each that needed a third attempt, whether it helped or not.
    assert_eq!(done.number("retried"), 50, "{:?}", done.report());
    assert!(!done.stderr.contains("ben@flaky.example"), "no payload in the log");
    let sent = mails(&log);
    // The good ones, and what was done after the kill: some of them again, if it came before their record.
    assert_eq!(done.number("processed") + 30, sent.len() as u64, "{:?}", done.report());
    let mailed: HashSet<String> = sent.iter().map(|mail| mail.message_id.clone()).collect();
    assert_eq!(mailed, ids, "every order with an address that works in the end");
    let flaky: Vec<_> = sent.iter().filter(|mail| mail.message_id.contains("flaky")).collect();
    assert_eq!(flaky.len(), 20);
    assert!(flaky.iter().all(|mail| mail.attempt == 3), "the count goes on from copy to copy");
    let dead = topic.dead_letters();
    // The process may have been killed between a dead letter and its record: then there is a second one.
    let reason = |reason: &str| {
        let of = |letter: &&Message| letter.headers().get_str("dead-letter-reason") == Some(reason);
        dead.iter().filter(of).map(|letter| letter.id().unwrap().to_vec()).collect::<HashSet<_>>().len()
    };
    assert_eq!((reason("attempts-exhausted"), reason("permanent")), (5, 5));
    let down =
        dead.iter().find(|letter| letter.id().unwrap().windows(4).any(|part| part == b"down")).unwrap();
    assert_eq!(down.headers().get_str("dead-letter-attempts"), Some("3"));
    if broker == Broker::Kafka {
        let told = ["topic", "source"].map(|of| down.headers().get_str(&format!("dead-letter-{of}")));
        assert_eq!(told, [Some(&*topic.name), Some("kafka")], "not where it waited");
    }
}

fn fm22_later_orders_of_a_key_wait_behind_the_one_that_waits_at_the_broker(broker: Broker) {
    let topic = Topic::shared(broker, "parked").ordered();
    let of_key = |key: &str, id: &str, email: &str| {
        let payload = format!(r#"{{"order_id":"{id}","email":"{email}"}}"#);
        Message::builder().payload(payload).key(key.to_owned()).id(id.to_owned()).build()
    };
    let mut messages = vec![of_key("slow", "slow-0", "ann@flaky.example")];
    let mut quick = HashSet::new();
    for nth in 1..20 {
        messages.push(of_key("slow", &format!("slow-{nth}"), "ann@example.com"));
        messages.push(of_key(&format!("quick-{nth}"), &format!("quick-{nth}"), "ann@example.com"));
        quick.insert(format!("quick-{nth}"));
    }
    topic.create();
    let folder = Folder::new();
    let log = folder.path("mails.jsonl");
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    let options = "--attempts 1 --delays 2s,3s --ordering key --until-idle 8s";
    arguments.extend(options.split(' ').map(str::to_owned));
    // Where the one has the partition of a key, the other may have that where its copies wait.
    let members: Vec<_> =
        (0..2).map(|_| Running::start(&mut orders(arguments.iter().map(String::as_str)))).collect();
    topic.publish_as_it_is(messages);
    let done: Vec<_> = members.into_iter().map(|member| member.wait().ok()).collect();
    let sum = |name| done.iter().map(|done| done.number(name)).sum::<u64>();
    assert_eq!((sum("processed"), sum("retried")), (39, 2), "{done:?}");
    assert!(done[0].stderr.contains("1000 of a key wait"), "{}", done[0].stderr);
    let sent: Vec<_> = mails(&log).into_iter().map(|mail| mail.message_id).collect();
    let (slow, others): (Vec<_>, Vec<_>) = sent.iter().cloned().partition(|id| id.starts_with("slow"));
    assert_eq!(slow, (0..20).map(|nth| format!("slow-{nth}")).collect::<Vec<_>>());
    assert_eq!((others.len(), others.into_iter().collect::<HashSet<_>>()), (19, quick));
    assert!(sent.iter().take_while(|id| id.starts_with("quick")).count() > 0, "other keys go on: {sent:?}");
}
