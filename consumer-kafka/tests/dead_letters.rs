//! Dead letters in a topic of a real broker: what a session shows, what it settles, and who may.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::{letters::*, *};
use consumer_core::{
    Message, Outgoing, Publisher,
    dead_letters::{DeadLetter, DeadLetters, Place, Settled},
};
use consumer_kafka::{KafkaAdmin, KafkaPublisher};
use rdkafka::{
    admin::{AdminOptions, ResourceSpecifier},
    consumer::{BaseConsumer, Consumer},
};
use tokio::time::timeout;
use xtask::servers::{Kafka, shared_kafka};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn all_are_listed_by_partition_and_listing_leaves_no_trace() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 4).await;
    produce(&publisher(&brokers), &topic, 0..2000).await;
    let mut letters = open(&brokers, &topic).await;
    assert_eq!(letters.expected(), Some(2000));
    let all = rest(&mut letters).await;
    assert!(next(&mut letters).await.unwrap().is_none(), "the end stays the end");
    assert!(places(&all).is_sorted());
    let mut sorted = numbers(&all);
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..2000));
    for letter in &all {
        let (partition, offset) = place(letter.message());
        assert_eq!(letter.place(), Place { scope: partition.into(), seq: offset });
        assert_eq!((letter.message().origin().name(), letter.reason()), (topic.as_str(), "unknown"));
        assert!(letter.message().timestamp().is_some());
    }
    letters.close().await.unwrap();

    assert_eq!(places(&list(&brokers, &topic).await), places(&all));
    assert_eq!(
        KafkaAdmin::new(&brokers).unwrap().partitions(&format!("{topic}.settled")).await.unwrap(),
        None
    );
    let consumer: BaseConsumer = driver(&brokers).create().unwrap();
    let groups = consumer.fetch_group_list(None, Duration::from_secs(10)).unwrap();
    assert!(groups.groups().iter().all(|group| group.name() != "consumer-kafka-dead-letters"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_settled_is_not_read_again_whoever_reads() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..10).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    let answers: Vec<_> = [0, 4, 9]
        .map(|n: usize| {
            let how = if n == 4 { Settled::Redriven } else { Settled::Discarded };
            letters.settle(all[n].place(), how)
        })
        .into();
    // Settled by the call: nobody waits for the first.
    for answer in answers.into_iter().skip(1) {
        answer.await.unwrap();
    }
    letters.close().await.unwrap();

    let mut again = open(&brokers, &topic).await;
    assert_eq!(again.expected(), Some(7));
    assert_eq!(numbers(&rest(&mut again).await), [1, 2, 3, 5, 6, 7, 8]);
    // The topic exists by now.
    discard(&mut again, [Place { scope: 0, seq: 1 }]).await;
    drop(again);
    assert_eq!(numbers(&list(&brokers, &topic).await), [2, 3, 5, 6, 7, 8]);

    let marks = contents(&brokers, &format!("{topic}.settled"), 4).await;
    let value: serde_json::Value = serde_json::from_slice(marks[1].payload()).unwrap();
    assert_eq!((marks[1].key().unwrap().as_ref(), &value["settled"]), (&b"0@4"[..], &"redriven".into()));
    assert!(value["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{value}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_topic_of_marks_is_compacted() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 3).await;
    produce(&publisher(&brokers), &topic, 0..1).await;
    let mut letters = open(&brokers, &topic).await;
    let letter = next(&mut letters).await.unwrap().unwrap();
    discard(&mut letters, [letter.place()]).await;
    let settled = format!("{topic}.settled");
    assert_eq!(KafkaAdmin::new(&brokers).unwrap().partitions(&settled).await.unwrap(), Some(1));
    let specifier = ResourceSpecifier::Topic(&settled);
    let settings =
        administration(&brokers).describe_configs([&specifier], &AdminOptions::new()).await.unwrap();
    let policy = settings[0].as_ref().unwrap().get("cleanup.policy").unwrap().value.clone();
    assert_eq!(policy.as_deref(), Some("compact"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_topic_of_marks_that_forgets_is_refused_and_one_with_more_partitions_does() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..5).await;
    let settled = format!("{topic}.settled");
    let admin = KafkaAdmin::new(&brokers).unwrap();
    admin.ensure_topic(&settled, 1, &[]).await.unwrap();
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    let message = letters.settle(all[0].place(), DISCARDED).await.unwrap_err().to_string();
    assert!(message.contains(&settled) && message.contains("cleanup.policy=compact"), "{message}");

    delete(&brokers, &settled).await;
    admin.ensure_topic(&settled, 3, &[("cleanup.policy", "compact")]).await.unwrap();
    discard(&mut letters, all.iter().map(DeadLetter::place).take(4)).await;
    assert_eq!(numbers(&list(&brokers, &topic).await), [4]);

    delete(&brokers, &settled).await;
    let again = async { while letters.settle(all[4].place(), DISCARDED).await.is_err() {} };
    timeout(LIMIT, again).await.expect("created anew in time");
    assert_eq!(numbers(&list(&brokers, &topic).await), [0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_session_that_dies_half_way_leaves_the_rest() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..5000).await;
    let mut letters = open(&brokers, &topic).await;
    for n in 0..1000 {
        let letter = next(&mut letters).await.unwrap().unwrap();
        assert_eq!(number(letter.message()), n);
        if n < 300 {
            // Nobody waits for the answer: the drop lets them out in the background.
            drop(letters.settle(letter.place(), DISCARDED));
        }
    }
    drop(letters);
    let settled = format!("{topic}.settled");
    contents(&brokers, &settled, 300).await;
    assert!(numbers(&list(&brokers, &topic).await).into_iter().eq(300..5000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_call_of_next_that_is_cut_off_leaves_no_letter_out() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 2).await;
    produce(&publisher(&brokers), &topic, 0..5000).await;
    let mut letters = open(&brokers, &topic).await;
    let (mut all, mut cut) = (Vec::new(), 0);
    loop {
        // Polled once.
        let polled = tokio::select! { biased; letter = letters.next() => Some(letter.unwrap()), () = async {} => None };
        match polled {
            Some(Some(letter)) => all.push(letter),
            Some(None) => break,
            None => {
                cut += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(cut > 0 && all.len() == 5000, "{cut} {}", all.len());
    assert!(places(&all).is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn records_that_settle_nothing_hide_nothing() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..6).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    discard(&mut letters, [all[0].place(), all[1].place()]).await;
    letters.close().await.unwrap();
    let other = r#"{"settled":"redriven","letter_timestamp":1}"#;
    let settled = format!("{topic}.settled");
    let odd = [
        ("0@2", Some("redriven")),
        ("0@3", Some("")),
        ("0@4", Some(other)),
        ("4", Some(other)),
        ("-1@-1", None),
        ("99@99", Some(other)),
    ];
    write(&brokers, &settled, &odd).await;
    assert_eq!(numbers(&list(&brokers, &topic).await), [2, 3, 4, 5]);
    // Taken back by hand.
    write(&brokers, &settled, &[("0@1", None)]).await;
    assert_eq!(numbers(&list(&brokers, &topic).await), [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn odd_letters_come_as_they_are() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let publisher = publisher(&brokers);
    let none = Message::builder().key("k").header("a", "1").header("b", "2").header("a", "3").build();
    publisher.publish(Outgoing::copy(topic.as_str(), none.clone())).await.unwrap();
    raw::produce(&brokers, &topic, b"1", &[(b"good", b"1"), (b"b\xffd", b"2")]);
    // Larger than a batch of the reader.
    let large = Message::new(vec![7; 3 << 20]);
    publisher.publish(Outgoing::copy(topic.as_str(), large)).await.unwrap();
    produce(&publisher, &topic, 3..4).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    assert!(all[0].message().is_tombstone() && all[0].message().headers() == none.headers());
    assert_eq!(all[1].message().defect().unwrap().dropped().len(), 1);
    assert_eq!((all[2].message().payload().len(), number(all[3].message()), all.len()), (3 << 20, 3, 4));
    discard(&mut letters, all[..3].iter().map(DeadLetter::place)).await;
    assert_eq!(numbers(&list(&brokers, &topic).await), [3]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn without_a_topic_or_without_letters() {
    let brokers = shared_kafka();
    let missing = unique("missing");
    let letters = KafkaAdmin::new(&brokers).unwrap().dead_letters(&missing);
    let error = letters.open().await.unwrap_err();
    assert!(error.is_missing() && error.to_string().contains(&missing), "{error:?}");
    let empty = topic(&brokers, 3).await;
    let mut letters = open(&brokers, &empty).await;
    assert_eq!(letters.expected(), Some(0));
    assert!(next(&mut letters).await.unwrap().is_none());
    let error = letters.settle(Place { scope: 0, seq: 0 }, DISCARDED).await.unwrap_err();
    assert!(error.to_string().contains("0@0"), "{error}");
    letters.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_a_user_may_not_do_is_told() {
    let kafka = Kafka::builder()
        .sasl_plain("ann", "right")
        .property("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .property("super.users", "User:ANONYMOUS")
        .start()
        .unwrap();
    let url = |password: &str| format!("kafka://ann:{password}@{}", kafka.bootstrap());
    let plain = kafka.plain_bootstrap();
    let topic = topic(&plain, 1).await;
    let settled = format!("{topic}.settled");
    produce(&publisher(&plain), &topic, 0..2).await;

    let wrong = KafkaAdmin::from_url(url("wr0ng")).unwrap().dead_letters(&topic);
    let error = wrong.open().await.unwrap_err();
    let shown = format!("{error} {error:?} {wrong:?}");
    assert!(shown.contains("password") && !shown.contains("wr0ng") && !error.is_transient(), "{shown}");

    let ann = KafkaAdmin::from_url(url("right")).unwrap().dead_letters(&topic);
    let error = ann.open().await.unwrap_err();
    assert!(error.to_string().contains(&topic), "{error}");
    raw::allow(&plain, "User:ann", raw::Operation::Describe, &topic);
    raw::allow(&plain, "User:ann", raw::Operation::Describe, &settled);
    let error = match ann.open().await {
        Err(error) => error,
        Ok(mut letters) => next(&mut letters).await.unwrap_err(),
    };
    assert!(error.to_string().contains("not let this user read"), "{error}");

    // Neither a right to a group nor to write.
    raw::allow(&plain, "User:ann", raw::Operation::Read, &topic);
    let mut letters = ann.open().await.unwrap();
    let all = rest(&mut letters).await;
    assert_eq!(numbers(&all), [0, 1]);
    let [first, second] = [0, 1].map(|n: usize| letters.settle(all[n].place(), DISCARDED));
    for error in [first.await.unwrap_err(), second.await.unwrap_err()] {
        let message = error.to_string();
        assert!(message.contains(&settled) && message.contains("cleanup.policy=compact"), "{message}");
    }
    letters.close().await.unwrap();

    // Created by another; what is told at the end was told to nobody.
    let admin = KafkaAdmin::new(&plain).unwrap();
    admin.ensure_topic(&settled, 1, &[("cleanup.policy", "compact")]).await.unwrap();
    raw::allow(&plain, "User:ann", raw::Operation::Read, &settled);
    // Without any right to write, the broker refuses idempotence already.
    raw::allow(&plain, "User:ann", raw::Operation::Write, &topic);
    let mut letters = ann.open().await.unwrap();
    let all = rest(&mut letters).await;
    drop(letters.settle(all[0].place(), DISCARDED));
    let message = letters.close().await.unwrap_err().to_string();
    assert!(message.contains("may not write") && message.contains(&settled), "{message}");
    raw::allow(&plain, "User:ann", raw::Operation::Write, &settled);
    let mut letters = ann.open().await.unwrap();
    let all = rest(&mut letters).await;
    discard(&mut letters, [all[0].place()]).await;
    assert_eq!(numbers(&list(&plain, &topic).await), [1]);
}

/// Not a test: prints how long 100,000 letters take.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 4).await;
    let publisher: KafkaPublisher = publisher(&brokers);
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    for chunk in 0..10 {
        let sent: Vec<_> = (0..10_000)
            .map(|n| {
                let n = chunk * 10_000 + n;
                let message = Message::builder()
                    .payload("x".repeat(200))
                    .key(n.to_string())
                    .header("message-id", n.to_string())
                    .header("dead-letter-reason", "permanent")
                    .header("dead-letter-error", "no such address: somebody@example.org is not known here")
                    .header("dead-letter-attempts", "3")
                    .header("dead-letter-consumer", "mails")
                    .header("dead-letter-last-failed-at", "2023-11-14T22:13:20.042Z")
                    .header("dead-letter-source", "kafka")
                    .header("dead-letter-topic", "orders");
                publisher.publish(Outgoing::new(topic.as_str(), message.build()))
            })
            .collect();
        for answer in sent {
            answer.await.unwrap();
        }
    }
    for round in ["unsettled", "settled"] {
        println!("before: {}", memory());
        let began = std::time::Instant::now();
        let mut letters = open(&brokers, &topic).await;
        println!("{round}: opened in {:?}", began.elapsed());
        let (mut count, mut matching) = (0, 0);
        let mut places = Vec::new();
        while let Some(letter) = next(&mut letters).await.unwrap() {
            count += 1;
            matching += u32::from(letter.consumer() == Some("mails"));
            places.push(letter.place());
        }
        println!("{round}: {count} letters, {matching} match, {:?}, {}", began.elapsed(), memory());
        if round == "settled" {
            break;
        }
        let began = std::time::Instant::now();
        for chunk in places.chunks(1000) {
            discard(&mut letters, chunk.iter().copied()).await;
        }
        println!("settled in {:?}, {}", began.elapsed(), memory());
        letters.close().await.unwrap();
    }
}
