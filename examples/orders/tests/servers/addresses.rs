//! What becomes of each kind of message.

use consumer::Message;

use crate::{
    common::{Done, Folder, mails, run},
    topic::{Broker, Topic, message, on_both_brokers, order},
};

on_both_brokers!(
    fm17_fm24_fm26_every_address_and_every_defect_ends_as_it_should,
    fm22_with_an_order_a_key_waits_for_its_retries,
    a_repaired_provider_takes_every_address,
    produce_and_consume_agree,
);

fn consume(topic: &Topic, folder: &Folder, more: &[&str]) -> Done {
    let log = folder.path("mails.jsonl");
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), log.to_str().unwrap().to_owned()]);
    arguments.extend(["--until-idle", "3s"].map(str::to_owned));
    if !more.contains(&"--backoff") {
        arguments.extend(["--backoff", "10ms"].map(str::to_owned));
    }
    run(arguments.iter().map(String::as_str).chain(more.iter().copied())).ok()
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers().get_str(name).unwrap_or_else(|| panic!("no {name}: {message:?}"))
}

fn fm17_fm24_fm26_every_address_and_every_defect_ends_as_it_should(broker: Broker) {
    let topic = Topic::shared(broker, "addresses");
    let no_id = Message::builder().payload(&b"{}"[..]).key("nobody").build();
    let empty_id = Message::builder().payload(&b"{}"[..]).key("nobody").header("message-id", "").build();
    let mut odd_headers = consumer::Headers::new();
    odd_headers.append("trace", "1");
    odd_headers.append_null("nothing");
    odd_headers.append("binary", &b"\xff\x00"[..]);
    odd_headers.append("trace", "2");
    odd_headers.append("message-id", "bounces");
    odd_headers.append("dead-letter-reason", "foreign");
    let bounces = Message::builder()
        .payload(&br#"{"order_id":"o-b","email":"x@bounces.example"}"#[..])
        .key("order-of-bounces")
        .headers(odd_headers)
        .build();
    let tombstone = Message::builder().key("order-of-null").id("null").build();
    topic.publish(vec![
        order("good", "ann@example.com"),
        order("good", "ann@example.com"),
        order("flaky", "ann@flaky.example"),
        order("down", "ann@down.example"),
        bounces,
        order("panics", "ann@panics.example"),
        message("broken", "{\"order_id\":"),
        message("incomplete", r#"{"order_id":"o-1"}"#),
        message("empty", ""),
        tombstone,
        no_id,
        empty_id,
    ]);

    let folder = Folder::new();
    let done = consume(&topic, &folder, &[]);
    if broker == Broker::Kafka {
        assert!(done.stderr.contains(&format!("created the topic {}", topic.dead())), "{}", done.stderr);
    }
    assert!(topic.exists(&topic.dead()));
    let expected = serde_json::json!({
        "received": 12, "processed": 2, "duplicates": 1, "retried": 6, "deferred": 0, "dead_lettered": 9,
        "returned": 0, "in_flight_at_stop": 0
    });
    assert_eq!(done.report(), expected, "{}", done.stderr);
    // Later, since nothing is in order: whichever payload comes first has the id.
    topic.publish_as_it_is(vec![order("good", "eve@example.com")]);
    let conflict = consume(&topic, &folder, &[]);
    assert_eq!(
        (conflict.number("received"), conflict.number("dead_lettered")),
        (1, 1),
        "{}",
        conflict.stderr
    );

    let mut sent: Vec<_> = mails(&folder.path("mails.jsonl"))
        .into_iter()
        .map(|m| (m.message_id, m.order_id, m.attempt))
        .collect();
    sent.sort();
    let mail = |id: &str, attempt| (id.to_owned(), format!("order-of-{id}"), attempt);
    assert_eq!(sent, [mail("flaky", 3), mail("good", 1)]);

    let dead = topic.dead_letters();
    let mut reasons: Vec<_> = dead
        .iter()
        .map(|letter| {
            let id = letter.id().map_or("", |id| std::str::from_utf8(id).unwrap());
            (id, header(letter, "dead-letter-reason"), header(letter, "dead-letter-attempts"))
        })
        .collect();
    reasons.sort();
    let expected = [
        ("", "no-key", "0"),
        ("", "no-key", "0"),
        ("bounces", "permanent", "1"),
        ("broken", "undecodable", "1"),
        ("down", "attempts-exhausted", "3"),
        ("empty", "undecodable", "1"),
        ("good", "conflict", "0"),
        ("incomplete", "undecodable", "1"),
        ("null", "undecodable", "1"),
        ("panics", "attempts-exhausted", "3"),
    ];
    assert_eq!(reasons, expected);
    for letter in &dead {
        assert_eq!(header(letter, "dead-letter-consumer"), topic.name);
        for time in ["dead-letter-first-failed-at", "dead-letter-last-failed-at"] {
            assert_time(letter, time);
        }
        assert_origin(letter, broker, &topic);
    }
    let find = |id: &str| dead.iter().find(|letter| letter.id().is_some_and(|found| found == id)).unwrap();
    assert!(header(find("panics"), "dead-letter-error").contains("the mail library hit a bug"));
    assert!(header(find("bounces"), "dead-letter-error").contains("no such mailbox"));
    // Payload, key and headers are carried on as they were, but for foreign headers of our prefix.
    // RabbitMQ has no tombstones: there it is an empty payload.
    assert_eq!(find("null").is_tombstone(), broker == Broker::Kafka);
    assert!(!find("empty").is_tombstone() && find("null").payload().is_empty());
    let bounced = find("bounces");
    assert_eq!(bounced.key().unwrap(), "order-of-bounces");
    assert_eq!(bounced.payload(), &br#"{"order_id":"o-b","email":"x@bounces.example"}"#[..]);
    let ours = |name: &str| name.starts_with("dead-letter-") || name == "message-key";
    let kept = bounced.headers().iter().filter(|(name, _)| !ours(name));
    let mut kept: Vec<_> = kept.map(|(name, value)| (name, value.map(|v| v.to_vec()))).collect();
    let value = |bytes: &[u8]| Some(bytes.to_vec());
    let mut expected = vec![
        ("trace", value(b"1")),
        ("nothing", None),
        ("binary", value(b"\xff\x00")),
        ("trace", value(b"2")),
        ("message-id", value(b"bounces")),
    ];
    if broker == Broker::RabbitMq {
        // A table has no order, only an array in it has.
        kept.sort_by_key(|(name, _)| *name);
        expected.sort_by_key(|(name, _)| *name);
    }
    assert_eq!(kept, expected);
    assert_eq!(bounced.headers().get_all("dead-letter-reason").count(), 1);
}

#[track_caller]
fn assert_time(letter: &Message, name: &str) {
    assert!(consumer::message::wire::parse_time(header(letter, name)).is_ok(), "{letter:?}");
}

/// Where a dead letter says it comes from.
#[track_caller]
fn assert_origin(letter: &Message, broker: Broker, topic: &Topic) {
    match broker {
        Broker::Kafka => {
            assert_eq!(header(letter, "dead-letter-source"), "kafka");
            assert_eq!(header(letter, "dead-letter-topic"), topic.name);
            for number in ["dead-letter-partition", "dead-letter-offset"] {
                assert!(header(letter, number).parse::<u64>().is_ok(), "{letter:?}");
            }
            assert_time(letter, "dead-letter-timestamp");
        }
        Broker::RabbitMq => {
            assert_eq!(header(letter, "dead-letter-source"), "amqp");
            assert_eq!(header(letter, "dead-letter-queue"), topic.name);
            assert_eq!(header(letter, "dead-letter-exchange"), "");
            assert_eq!(header(letter, "dead-letter-routing-key"), topic.name);
        }
    }
}

/// One key waits for its first message, which fails twice.
fn fm22_with_an_order_a_key_waits_for_its_retries(broker: Broker) {
    let topic = Topic::shared(broker, "ordered").ordered();
    let of_key = |key: &str, id: &str, email: &str| {
        let payload = format!(r#"{{"order_id":"{id}","email":"{email}"}}"#);
        Message::builder().payload(payload).key(key.to_owned()).id(id.to_owned()).build()
    };
    let mut messages = vec![of_key("slow", "slow-0", "ann@flaky.example")];
    for nth in 1..20 {
        messages.push(of_key("slow", &format!("slow-{nth}"), "ann@example.com"));
        messages.push(of_key(&format!("quick-{nth}"), &format!("quick-{nth}"), "ann@example.com"));
    }
    topic.publish(messages);
    let folder = Folder::new();
    let done = consume(&topic, &folder, &["--ordering", "key", "--backoff", "1s"]);
    assert_eq!((done.number("processed"), done.number("retried")), (39, 2));
    let sent: Vec<_> = mails(&folder.path("mails.jsonl")).into_iter().map(|mail| mail.message_id).collect();
    let slow: Vec<_> = sent.iter().filter(|id| id.starts_with("slow")).cloned().collect();
    assert_eq!(slow, (0..20).map(|nth| format!("slow-{nth}")).collect::<Vec<_>>());
    assert_eq!(sent.iter().filter(|id| id.starts_with("quick")).count(), 19);
}

fn a_repaired_provider_takes_every_address(broker: Broker) {
    let topic = Topic::shared(broker, "repaired");
    let kinds = ["flaky", "down", "bounces", "panics", "aborts"];
    topic.publish(kinds.iter().map(|kind| order(kind, &format!("x@{kind}.example"))).collect());
    let folder = Folder::new();
    let done = consume(&topic, &folder, &["--repaired"]);
    assert_eq!((done.number("processed"), done.number("retried")), (5, 0));
    assert_eq!(mails(&folder.path("mails.jsonl")).len(), 5);
}

fn produce_and_consume_agree(broker: Broker) {
    let topic = Topic::shared(broker, "mixture");
    let mut arguments = topic.arguments("produce");
    let mixture = "--count 1000 --duplicates 0.2 --undecodable 0.05 --flaky 0.03 --bouncing 0.02 --seed 7";
    arguments.extend(mixture.split(' ').map(str::to_owned));
    let done = run(arguments.iter().map(String::as_str)).ok();
    let expected =
        serde_json::json!({"published": 1000, "unique": 800, "undecodable": 50, "flaky": 30, "bouncing": 20});
    assert_eq!(done.report(), expected);
    if broker == Broker::Kafka {
        assert!(done.stderr.contains("created the topic"), "{}", done.stderr);
    }
    assert!(topic.exists(&topic.name));

    let folder = Folder::new();
    // A queue that `produce` declares has several consumers at a time, and keeps no order.
    let ordering = if broker == Broker::Kafka { "key" } else { "none" };
    let done = consume(&topic, &folder, &["--ordering", ordering, "--rate", "5000"]);
    let expected = serde_json::json!({
        "received": 1000, "processed": 730, "duplicates": 200, "retried": 60, "deferred": 0, "dead_lettered": 70,
        "returned": 0, "in_flight_at_stop": 0
    });
    assert_eq!(done.report(), expected);
    let sent = mails(&folder.path("mails.jsonl"));
    let ids: std::collections::HashSet<_> = sent.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((sent.len(), ids.len()), (730, 730));
    assert_eq!(topic.dead_letters().len(), 70);

    // Published once more, they are all known; what was set aside stays so.
    run(arguments.iter().map(String::as_str)).ok();
    let again = consume(&topic, &folder, &[]);
    let numbers = ["received", "processed", "duplicates", "dead_lettered"].map(|name| again.number(name));
    assert_eq!(numbers, [1000, 0, 1000, 0]);
    assert_eq!(mails(&folder.path("mails.jsonl")).len(), 730);
}
