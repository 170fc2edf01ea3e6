//! Dead letters in a topic of a real broker that changes under its reader: gaps, deletion, and a broker that goes away.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::{letters::*, *};
use consumer_core::dead_letters::{DeadLetter, DeadLetters};
use consumer_kafka::KafkaAdmin;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::AdminOptions,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tokio::time::timeout;
use xtask::servers::{Kafka, shared_kafka};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn marks_of_a_topic_that_is_no_more_hide_no_letter_of_the_new_one() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..5).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    discard(&mut letters, all.iter().map(DeadLetter::place)).await;
    assert!(list(&brokers, &topic).await.is_empty());

    delete(&brokers, &topic).await;
    let admin = KafkaAdmin::new(&brokers).unwrap();
    admin.ensure_topic(&topic, 1, &[]).await.unwrap();
    produce(&publisher(&brokers), &topic, 10..13).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    assert_eq!(numbers(&all), [10, 11, 12]);
    discard(&mut letters, [all[1].place()]).await;
    assert_eq!(numbers(&list(&brokers, &topic).await), [10, 12]);
    // Nor is a letter of the old one settled by who read it.
    assert_eq!(places(&all), [(0, 0), (0, 1), (0, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn transactions_leave_gaps_that_do_not_hold_the_reader_up() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 2).await;
    let producer: BaseProducer =
        driver(&brokers).set("transactional.id", unique("x")).set("linger.ms", "0").create().unwrap();
    producer.init_transactions(LIMIT).unwrap();
    let send = |range: std::ops::Range<u32>| {
        producer.begin_transaction().unwrap();
        for n in range {
            let text = n.to_string();
            producer.send(BaseRecord::to(&topic).partition(0).key(&text).payload(&text)).unwrap();
        }
        producer.flush(LIMIT).unwrap();
    };
    send(0..3);
    producer.commit_transaction(LIMIT).unwrap();
    send(3..5);
    producer.abort_transaction(LIMIT).unwrap();
    // The end of the partition is without a record, and so is all that was aborted.
    let mut letters = open(&brokers, &topic).await;
    assert_eq!(letters.expected(), Some(7), "it cannot be told without reading");
    assert_eq!(numbers(&rest(&mut letters).await), [0, 1, 2]);

    // What is open is not there yet, and is not waited for.
    send(5..7);
    assert_eq!(numbers(&list(&brokers, &topic).await), [0, 1, 2]);
    producer.commit_transaction(LIMIT).unwrap();
    assert_eq!(numbers(&list(&brokers, &topic).await), [0, 1, 2, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_retention_has_deleted_is_not_waited_for_and_its_marks_go_away() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..10).await;
    let mut letters = open(&brokers, &topic).await;
    let all = rest(&mut letters).await;
    discard(&mut letters, [0, 1, 7].map(|n: usize| all[n].place())).await;
    letters.close().await.unwrap();

    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic, 0, Offset::Offset(5)).unwrap();
    administration(&brokers).delete_records(&below, &AdminOptions::new()).await.unwrap();
    let mut letters = open(&brokers, &topic).await;
    assert_eq!(letters.expected(), Some(4));
    let left = rest(&mut letters).await;
    assert_eq!(numbers(&left), [5, 6, 8, 9]);
    let settled = format!("{topic}.settled");
    letters.close().await.unwrap();
    assert_eq!(contents(&brokers, &settled, 3).await.len(), 3, "who only reads changes nothing");

    let mut letters = open(&brokers, &topic).await;
    let left = rest(&mut letters).await;
    discard(&mut letters, [left[0].place()]).await;
    letters.close().await.unwrap();
    let marks = contents(&brokers, &settled, 6).await;
    let gone: Vec<_> =
        marks.iter().filter(|mark| mark.is_tombstone()).map(|mark| mark.key().unwrap()).collect();
    assert_eq!(gone, ["0@0", "0@1"]);
    assert_eq!(numbers(&list(&brokers, &topic).await), [6, 8, 9]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn compaction_leaves_gaps_in_both_topics() {
    // Of its own: it compacts all the time.
    let kafka = Kafka::builder().property("log.cleaner.backoff.ms", "100").start().unwrap();
    let brokers = kafka.bootstrap();
    let admin = KafkaAdmin::new(&brokers).unwrap();
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "100"),
        ("delete.retention.ms", "0"),
    ];
    let topic = unique("t");
    let settled = format!("{topic}.settled");
    admin.ensure_topic(&topic, 1, &settings).await.unwrap();
    admin.ensure_topic(&settled, 1, &settings).await.unwrap();
    let publisher = publisher(&brokers);
    let mut all = 0;
    // Compacted when the first of several records with one key is gone.
    let compact = async {
        loop {
            write(&brokers, &topic, &[("k", Some("1")), ("k", Some("2")), ("k", None)]).await;
            produce(&publisher, &topic, 5..6).await;
            all += 4;
            let letters = list(&brokers, &topic).await;
            if letters.len() < all {
                return letters;
            }
        }
    };
    let letters = timeout(LIMIT, compact).await.expect("compacted in time");
    assert!(places(&letters).is_sorted() && !letters.is_empty());
    assert_eq!(letters.last().unwrap().message().payload()[..], *b"5");
    let mut session = open(&brokers, &topic).await;
    let letters = rest(&mut session).await;
    for letter in &letters {
        discard(&mut session, [letter.place(), letter.place()]).await;
    }
    assert!(list(&brokers, &topic).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_is_away_is_waited_for() {
    let kafka = Kafka::start().unwrap();
    let brokers = kafka.bootstrap();
    let topic = topic(&brokers, 1).await;
    fill(&brokers, &topic).await;
    let mut letters = open(&brokers, &topic).await;
    let first = next(&mut letters).await.unwrap().unwrap();
    kafka.kill();
    let settled = letters.settle(first.place(), DISCARDED);
    let reading = tokio::spawn(async move { (rest(&mut letters).await.len(), letters) });
    kafka.start_again().unwrap();
    let (count, letters) = timeout(LIMIT, reading).await.expect("in time").unwrap();
    assert_eq!(count, 19_999);
    timeout(LIMIT, settled).await.expect("an answer in time").unwrap();
    letters.close().await.unwrap();

    // Nor for ever.
    let admin = KafkaAdmin::new(&brokers).unwrap().timeout(Duration::from_secs(3));
    let mut letters = admin.dead_letters(&topic).open().await.unwrap();
    assert_eq!(letters.expected(), Some(19_999));
    kafka.kill();
    let mut read = 0;
    let error = loop {
        match next(&mut letters).await {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("complete after {read}"),
            Err(error) => break error,
        }
    };
    assert!(error.is_transient() && error.to_string().contains(&brokers), "{error:?}");
    assert!(next(&mut letters).await.unwrap_err().is_transient(), "no end afterwards either");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_topic_that_goes_away_while_it_is_read_does_not_look_complete() {
    let brokers = shared_kafka();
    for anew in [false, true] {
        let topic = topic(&brokers, 1).await;
        fill(&brokers, &topic).await;
        let mut letters = open(&brokers, &topic).await;
        let mut last = next(&mut letters).await.unwrap().unwrap().place();
        delete(&brokers, &topic).await;
        if anew {
            KafkaAdmin::new(&brokers).unwrap().ensure_topic(&topic, 1, &[]).await.unwrap();
            produce(&publisher(&brokers), &topic, 0..3).await;
        }
        let error = loop {
            match next(&mut letters).await {
                Ok(letter) => {
                    let place = letter.expect("it looks complete").place();
                    assert!(place > last, "{place} after {last}: a letter of the new topic");
                    last = place;
                }
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains(&topic), "{error:?}");
        assert_eq!((error.is_missing(), error.is_transient()), (!anew, anew), "{error:?}");
    }
}
