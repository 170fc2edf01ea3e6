//! The source against a real broker.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use common::*;
use consumer_core::{Event, Message, Outgoing, Publisher, Settlement, Source};
use consumer_kafka::{GroupProtocol, StartPosition};
use xtask::servers::shared_kafka;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm12_what_is_acked_is_committed_and_the_rest_comes_again() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..10).await;

    let mut first = Member::new(member(&brokers, &topic, &group));
    let got = first.receive(10).await;
    assert_eq!(got.iter().map(|d| number(&d.message)).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    // fm12: 5 is not done, so what is behind it is not committed either.
    for delivery in got.iter().filter(|d| number(&d.message) != 5) {
        first.source.settle(delivery.tag, Settlement::Ack);
    }
    first.flush().await.unwrap();
    first.close().await.unwrap();

    let mut second = Member::new(member(&brokers, &topic, &group));
    let got = second.receive(5).await;
    assert_eq!(got.iter().map(|d| number(&d.message)).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
    second.source.settle(got[0].tag, Settlement::Reject);
    second.ack(&got[1..]);
    second.close().await.unwrap();
    assert!(left(&brokers, &topic, &group).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_message_goes_round_byte_for_byte() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let publisher = publisher(&brokers);
    let mut odd = Message::builder().payload(vec![0, 255]).key(vec![7, 0]).header("b", "1").build();
    let mut headers = odd.headers().clone();
    headers.append_null("a");
    headers.append("b", vec![0xff]);
    headers.append("empty", "");
    odd = Message::builder().payload(odd.payload().clone()).key(vec![7, 0]).headers(headers).build();
    let large = Message::builder().payload("x").header("large", vec![b'h'; 1 << 20]).build();
    for message in [odd.clone(), Message::new(""), Message::builder().key("k").build(), large] {
        publisher.publish(Outgoing::copy(topic.as_str(), message)).await.unwrap();
    }

    let got = contents(&brokers, &topic, 4).await;
    assert_eq!(got[0].payload(), odd.payload());
    assert_eq!(got[0].key(), odd.key());
    assert_eq!(got[0].headers(), odd.headers());
    assert_eq!(place(&got[0]), (0, 0));
    assert_eq!((got[0].origin().system(), got[0].origin().name()), ("kafka", topic.as_str()));
    assert!(got[0].timestamp().unwrap().elapsed().unwrap() < Duration::from_secs(3600));
    assert!(!got[1].is_tombstone() && got[1].payload().is_empty() && got[1].key().is_none());
    assert!(got[2].is_tombstone());
    assert_eq!(got[3].headers().get("large").unwrap().len(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_nacked_message_comes_again_before_later_ones() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..3).await;
    let mut member = Member::new(member(&brokers, &topic, &unique("g")));
    let got = member.receive(2).await;
    member.source.settle(got[0].tag, Settlement::Nack);
    let again = member.receive(2).await;
    assert_eq!(again.iter().map(|d| number(&d.message)).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(again[0].tag, got[0].tag);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn too_much_uncommitted_pauses_the_partition_and_a_commit_resumes_it() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    produce(&publisher(&brokers), &topic, 0..100).await;
    let mut member = Member::new(
        member(&brokers, &topic, &unique("g")).max_uncommitted(10).commit_every(Duration::from_secs(600)),
    );
    let got = member.receive(10).await;
    assert!(member.receive_for(Duration::from_secs(1)).await.is_empty());
    member.ack(&got[1..]);
    assert!(member.receive_for(Duration::from_secs(1)).await.is_empty(), "the first is not done");
    member.ack(&got[..1]);
    // The early commit makes room.
    let more = member.receive(10).await;
    assert_eq!(number(&more[0].message), 10);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_full_consumer_holds_a_bounded_part_of_the_backlog_and_then_goes_on() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 4).await;
    let count = 30_000;
    produce(&publisher(&brokers), &topic, 0..count).await;
    let mut member = Member::new(member(&brokers, &topic, &unique("g")));
    let mut all = member.receive(100).await;
    // Longer than the source waits before it pauses.
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(2), member.event(0)).await.ok().map(Result::unwrap),
        None
    );
    let lag = member.source.lag().unwrap();
    assert_eq!(lag, u64::from(count) - 100);
    all.extend(member.receive(count as usize - 100).await);
    let mut numbers: Vec<_> = all.iter().map(|d| number(&d.message)).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..count));
    let mut places: Vec<_> = all.iter().map(|d| place(&d.message)).collect();
    for partition in 0..4 {
        assert!(places.iter().filter(|p| p.0 == partition).is_sorted());
    }
    places.dedup();
    assert_eq!(places.len(), count as usize);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_start_position_applies_only_without_a_committed_offset() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let publisher = publisher(&brokers);
    produce(&publisher, &topic, 0..3).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let between = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    produce(&publisher, &topic, 3..6).await;

    let at = BTreeMap::from([((topic.clone(), 0), 4)]);
    for (start, first) in [
        (StartPosition::Earliest, 0),
        (StartPosition::Timestamp(between), 3),
        (StartPosition::Offsets(at), 4),
        (StartPosition::Offsets(BTreeMap::new()), 0),
    ] {
        let group = unique("g");
        let mut fresh = Member::new(member(&brokers, &topic, &group).start(start.clone()));
        let got = fresh.receive(1).await;
        assert_eq!(number(&got[0].message), first, "{start:?}");
        fresh.ack(&got);
        fresh.close().await.unwrap();
        let mut again = Member::new(member(&brokers, &topic, &group).start(start));
        assert_eq!(number(&again.receive(1).await[0].message), first + 1);
        again.close().await.unwrap();
    }

    // Latest: nothing of before; and what comes after the first start is there after a restart.
    let group = unique("g");
    let mut latest = Member::new(member(&brokers, &topic, &group).start(StartPosition::Latest));
    latest.connected().await;
    latest.close().await.unwrap();
    produce(&publisher, &topic, 6..8).await;
    let mut latest = Member::new(member(&brokers, &topic, &group).start(StartPosition::Latest));
    assert_eq!(number(&latest.receive(1).await[0].message), 6);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_replay_has_its_own_offsets_and_goes_on_after_a_restart() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..4).await;
    let mut normal = Member::new(member(&brokers, &topic, &group));
    let got = normal.receive(4).await;
    normal.ack(&got);
    normal.close().await.unwrap();

    let replay = || Member::new(member(&brokers, &topic, &group).replay("fix"));
    let mut first = replay();
    assert_eq!(first.source.scope(), format!("{group}@fix"));
    let got = first.receive(2).await;
    assert_eq!(number(&got[0].message), 0);
    first.ack(&got);
    first.close().await.unwrap();
    assert_eq!(number(&replay().receive(1).await[0].message), 2);
    assert!(left(&brokers, &topic, &group).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn dropped_without_a_close_it_commits_no_more_than_what_was_acked() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..4).await;
    let mut first = Member::new(member(&brokers, &topic, &group));
    let got = first.receive(4).await;
    first.ack(&got[..1]);
    drop(first);
    let mut second = Member::new(member(&brokers, &topic, &group));
    let again = second.receive(3).await;
    assert!(number(&again[0].message) <= 1);
    assert!([1, 2].contains(&number(&again[1].message)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_assignment_of_no_partition_counts_as_connected() {
    let brokers = shared_kafka();
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let topic = topic(&brokers, 1).await;
        let group = unique("g");
        let builder = || {
            consumer_kafka::KafkaSource::builder(&brokers)
                .group(&group)
                .topic(&topic)
                .group_protocol(protocol)
        };
        let mut first = Member::new(builder());
        first.connected().await;
        let mut second = Member::new(builder());
        let idle = async { second.connected().await };
        let busy = async {
            loop {
                if let Event::Closing { scope, .. } = first.event(1).await.unwrap() {
                    first.source.release(scope);
                }
            }
        };
        tokio::select! { () = idle => {}, () = busy => {} }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_static_member_comes_back_to_its_partition() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    produce(&publisher(&brokers), &topic, 0..2).await;
    let builder = || member(&brokers, &topic, &group).static_member("one");
    let mut first = Member::new(builder());
    let got = first.receive(1).await;
    first.ack(&got);
    first.close().await.unwrap();
    let mut second = Member::new(builder());
    assert_eq!(number(&second.receive(1).await[0].message), 1);
}

/// A process that dies right after its start must not look for the end of the partition once more: what came
/// meanwhile would be left out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_start_position_is_committed_before_anything_is_consumed() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let (publisher, group) = (publisher(&brokers), unique("g"));
    produce(&publisher, &topic, 0..3).await;
    let builder = || member(&brokers, &topic, &group).start(StartPosition::Latest);
    let mut first = Member::new(builder().commit_every(Duration::from_secs(3600)));
    first.connected().await;
    let look: rdkafka::consumer::BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", &group)
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition(&topic, 0);
    let committed = tokio::task::spawn_blocking(move || {
        rdkafka::consumer::Consumer::committed_offsets(&look, list, LIMIT).unwrap()
    });
    let committed = committed.await.unwrap();
    assert_eq!(committed.elements()[0].offset(), rdkafka::Offset::Offset(3));
    first.close().await.unwrap();
}

/// The driver never says that it has left a group after a fatal error.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_static_member_that_is_thrown_out_says_why_and_ends() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let group = unique("g");
    let builder = || member(&brokers, &topic, &group).static_member("one");
    let mut first = Member::new(builder());
    first.connected().await;
    let mut second = Member::new(builder());
    let thrown_out = async {
        loop {
            match first.event(10).await {
                Ok(Event::Closing { scope, .. }) => first.source.release(scope),
                Ok(_) => {}
                Err(error) => break error,
            }
        }
    };
    let coming = async {
        loop {
            second.event(10).await.unwrap();
        }
    };
    let error = tokio::select! {
        error = tokio::time::timeout(LIMIT, thrown_out) => error.expect("it is thrown out"),
        () = coming => unreachable!(),
    };
    let message = error.to_string();
    assert!(message.contains(&group) && message.to_lowercase().contains("fenced"), "{message}");
    let _ = first.close().await;
    second.close().await.unwrap();
    let gone = async {
        while threads("kafka-leave") > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("nothing of it is left behind");
}

/// How many threads of this process have this name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.trim() == name).count()
}
