//! Messages for later: the retry topics of a group.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use common::*;
use consumer_core::{Delivery, Event, Message, Outgoing, Publisher, Source, message::wire};
use consumer_kafka::{
    GroupProtocol, KafkaAdmin, KafkaPublisher, KafkaSource, KafkaSourceBuilder, StartPosition,
};
use tokio::time::timeout;
use xtask::servers::shared_kafka;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A group of its own on a topic.
struct Group {
    brokers: String,
    topic: String,
    name: String,
    delay: Duration,
    protocol: GroupProtocol,
}

impl Group {
    async fn new(partitions: u32, delay: Duration) -> Self {
        let brokers = shared_kafka();
        let topic = topic(&brokers, partitions).await;
        Self { brokers, topic, name: unique("g"), delay, protocol: GroupProtocol::Classic }
    }

    fn builder(&self) -> KafkaSourceBuilder {
        KafkaSource::builder(&self.brokers)
            .group(&self.name)
            .topic(&self.topic)
            .delays([self.delay])
            .group_protocol(self.protocol)
    }

    fn member(&self) -> Member {
        Member::new(self.builder())
    }

    fn retry_topic(&self) -> String {
        format!("{}.retry.{}", self.name, wire::format_delay(self.delay))
    }

    /// Of a source that consumes nothing.
    fn publisher(&self) -> KafkaPublisher {
        self.builder().build().unwrap().publisher().unwrap()
    }

    async fn committed(&self, topic: &str, partition: i32) -> rdkafka::Offset {
        let look: rdkafka::consumer::BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", &self.name)
            .create()
            .unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(topic, partition);
        let committed = tokio::task::spawn_blocking(move || {
            rdkafka::consumer::Consumer::committed_offsets(&look, list, LIMIT).unwrap()
        });
        committed.await.unwrap().elements()[0].offset()
    }
}

/// Publishes copies of these numbers, with themselves as payload and key.
async fn delayed(
    publisher: &KafkaPublisher,
    target: &str,
    delay: Duration,
    numbers: impl Iterator<Item = u32>,
) {
    let sent: Vec<_> = numbers.map(|n| publisher.publish(copy(target, n).delay(delay))).collect();
    for answer in sent {
        answer.await.unwrap();
    }
}

fn copy(target: &str, n: u32) -> Outgoing {
    Outgoing::new(target, Message::builder().payload(n.to_string()).key(n.to_string()).build())
}

fn due(message: &Message) -> SystemTime {
    wire::parse_time(message.headers().get_str(wire::RETRY_NOT_BEFORE).unwrap()).unwrap()
}

fn numbers<'a>(got: impl IntoIterator<Item = &'a Delivery>) -> Vec<u32> {
    got.into_iter().map(|delivery| number(&delivery.message)).collect()
}

/// Until the source knows of so many messages, and delivers none of them.
async fn waits(member: &mut Member, count: u64) {
    let known = async {
        while member.source.lag() != Some(count) {
            assert!(member.receive_for(SECOND / 10).await.is_empty(), "not due");
        }
    };
    timeout(LIMIT, known).await.expect("all of them are known");
}

/// Each of them once, and each partition in its order.
fn assert_complete(got: &[Delivery], count: u32) {
    let mut places: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (partition, offset) in got.iter().map(|delivery| place(&delivery.message)) {
        places.entry(partition).or_default().push(offset);
    }
    for (partition, offsets) in places {
        assert!(offsets.iter().copied().eq(0..offsets.len() as u64), "partition {partition}: {offsets:?}");
    }
    let mut all = numbers(got);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..count));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_copy_comes_after_its_delay_in_its_order_and_to_no_other_group() {
    let mut group = Group::new(3, 2 * SECOND).await;
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        group.protocol = protocol;
        group.name = unique("g");
        let mut other = Member::new(member(&group.brokers, &group.topic, &unique("other")));
        let mut member = group.member();
        member.connected().await;
        // From the topic, and from the retry topic of an earlier round.
        let (publisher, retry) = (member.source.publisher().unwrap(), group.retry_topic());
        delayed(&publisher, &group.topic, group.delay, 0..50).await;
        delayed(&publisher, &retry, group.delay, 50..100).await;
        let mut got = Vec::new();
        while got.len() < 100 {
            let next = member.receive(1).await;
            assert!(next.iter().all(|delivery| due(&delivery.message) <= SystemTime::now()), "too early");
            got.extend(next);
        }
        assert_complete(&got, 100);
        assert_eq!(got[0].message.origin().name(), retry, "where it was taken from");
        member.ack(&got);
        member.close().await.unwrap();
        assert!(left(&group.brokers, &retry, &group.name).await.is_empty(), "{protocol:?}");
        assert!(other.receive_for(SECOND).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_waits_for_a_delay_that_is_no_longer_configured_comes_all_the_same() {
    let group = Group::new(1, 2 * SECOND).await;
    let mut first = group.member();
    first.connected().await;
    delayed(&group.publisher(), &group.topic, group.delay, 0..20).await;
    first.close().await.unwrap();
    // A deployment with other delays, and one with none.
    for (delays, numbers) in [(vec![HOUR], 0..20), (vec![], 20..30)] {
        let later =
            KafkaSource::builder(&group.brokers).group(&group.name).topic(&group.topic).delays(delays);
        let mut later = Member::new(later);
        let got = later.receive(numbers.len()).await;
        assert_eq!(self::numbers(&got), numbers.collect::<Vec<_>>());
        assert!(got.iter().all(|delivery| due(&delivery.message) <= SystemTime::now()), "too early");
        later.ack(&got);
        let stray = later.source.publisher().unwrap().publish(copy(&group.topic, 0).delay(group.delay));
        assert!(!stray.await.unwrap_err().is_transient(), "nothing new is put there");
        later.close().await.unwrap();
        delayed(&group.publisher(), &group.topic, group.delay, 20..30).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn missing_retry_topics_are_created_as_large_as_their_source_and_others_left_alone() {
    let group = Group::new(3, 2 * SECOND).await;
    let admin = KafkaAdmin::new(&group.brokers).unwrap();
    let small = topic(&group.brokers, 1).await;
    let existing = format!("{}.retry.3s", group.name);
    admin.ensure_topic(&existing, 1, &[]).await.unwrap();
    let mut member = Member::new(group.builder().topic(&small).delays([3 * SECOND]));
    member.connected().await;
    assert_eq!(admin.partitions(&group.retry_topic()).await.unwrap(), Some(3));
    assert_eq!(admin.max_message_bytes(&group.retry_topic()).await.unwrap(), 4_194_304 + (16 << 10));
    assert_eq!(admin.partitions(&existing).await.unwrap(), Some(1));
    member.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn retry_topics_that_would_lose_what_waits_are_refused_with_the_setting() {
    for (setting, value, says) in [
        ("cleanup.policy", "compact", "set cleanup.policy=delete"),
        ("retention.ms", "3999", "set retention.ms to 4000"),
        ("retention.ms", "4000", ""),
        ("retention.ms", "-1", ""),
    ] {
        let group = Group::new(1, 2 * SECOND).await;
        let admin = KafkaAdmin::new(&group.brokers).unwrap();
        admin.ensure_topic(&group.retry_topic(), 1, &[(setting, value)]).await.unwrap();
        let mut member = group.member();
        if says.is_empty() {
            member.connected().await;
            member.close().await.unwrap();
            continue;
        }
        let error = timeout(LIMIT, member.event(1)).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(&group.retry_topic()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn retry_topics_that_cannot_be_created_are_named_with_their_settings() {
    let group = Group::new(2, 2 * SECOND).await;
    // To Kafka, names that differ by dots and underscores are one.
    let rival = group.retry_topic().replace('.', "_");
    KafkaAdmin::new(&group.brokers).unwrap().ensure_topic(&rival, 1, &[]).await.unwrap();
    let mut member = group.member();
    let error = timeout(LIMIT, member.event(1)).await.unwrap().unwrap_err().to_string();
    for part in [&*format!("`{}`", group.retry_topic()), "2 partitions", "retention.ms=604800000"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm12_what_waits_is_not_committed_and_what_is_behind_it_waits_too() {
    let group = Group::new(1, HOUR).await;
    let publisher = group.publisher();
    let mut first = group.member();
    first.connected().await;
    for (n, due) in [(0, SystemTime::now()), (1, SystemTime::now() + 8 * SECOND), (2, SystemTime::now())] {
        publisher.publish(copy(&group.topic, n).delay(HOUR).not_before(due)).await.unwrap();
    }
    let got = first.receive(1).await;
    waits(&mut first, 2).await;
    first.ack(&got);
    first.flush().await.unwrap();
    assert_eq!(group.committed(&group.retry_topic(), 0).await, rdkafka::Offset::Offset(1));
    first.close().await.unwrap();
    let mut second = group.member();
    assert_eq!(numbers(&second.receive(2).await), [1, 2], "nothing is lost, nothing comes twice");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm32_members_come_and_go_while_copies_wait() {
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let mut group = Group::new(4, 12 * SECOND).await;
        group.protocol = protocol;
        let mut first = group.member();
        first.connected().await;
        delayed(&first.source.publisher().unwrap(), &group.topic, group.delay, 0..400).await;
        waits(&mut first, 400).await;
        // One joins and takes some of them over, then the first one goes, without a close.
        let mut second = group.member();
        let joining = async {
            second.connected().await;
            second
        };
        tokio::pin!(joining);
        let mut second = loop {
            tokio::select! {
                second = &mut joining => break second,
                event = first.event(1) => if let Event::Closing { scope, .. } = event.unwrap() {
                    first.source.release(scope);
                },
            }
        };
        assert!(first.got.is_empty() && second.got.is_empty(), "{protocol:?}: none was due");
        drop(first);
        let got = second.receive(400).await;
        assert_complete(&got, 400);
        assert!(second.receive_for(SECOND).await.is_empty(), "{protocol:?}: each once");
        second.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn more_copies_than_memory_holds_wait_at_the_broker_and_all_come() {
    for partitions in [1, 4] {
        let group = Group::new(partitions, 3 * SECOND).await;
        let mut member = group.member();
        member.connected().await;
        let count = 6_000;
        delayed(&member.source.publisher().unwrap(), &group.topic, group.delay, 0..count).await;
        let mut got = member.receive(1).await;
        // Longer than the source waits, with a full buffer, before it pauses everything.
        let full = timeout(SECOND, member.event(0)).await.ok().map(Result::unwrap);
        assert_eq!(full, None);
        let began = Instant::now();
        got.extend(member.receive(count as usize - 1).await);
        println!("{partitions} partitions: {count} copies in {:?}", began.elapsed());
        assert_complete(&got, count);
        member.ack(&got);
        member.close().await.unwrap();
        assert!(left(&group.brokers, &group.retry_topic(), &group.name).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_due_heeds_the_limit_of_what_is_uncommitted() {
    let group = Group::new(1, SECOND).await;
    let mut member = Member::new(group.builder().max_uncommitted(10).commit_every(HOUR));
    member.connected().await;
    delayed(&member.source.publisher().unwrap(), &group.topic, group.delay, 0..600).await;
    let mut all = Vec::new();
    while all.len() < 600 {
        let got = member.receive(10).await;
        assert!(member.got.is_empty() && got.len() == 10);
        if all.is_empty() {
            assert!(member.receive_for(2 * SECOND).await.is_empty(), "only a commit makes room");
        }
        member.ack(&got);
        all.extend(got);
    }
    assert_complete(&all, 600);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_group_that_starts_at_the_end_leaves_no_copy_out() {
    let group = Group::new(1, SECOND).await;
    let admin = KafkaAdmin::new(&group.brokers).unwrap();
    admin.ensure_topic(&group.retry_topic(), 1, &[]).await.unwrap();
    delayed(&group.publisher(), &group.topic, group.delay, 0..3).await;
    produce(&publisher(&group.brokers), &group.topic, 7..9).await;
    let mut member = Member::new(group.builder().start(StartPosition::Latest));
    assert_eq!(numbers(&member.receive(3).await), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_message_that_does_not_say_when_it_is_due_waits_for_the_delay_of_its_topic() {
    let group = Group::new(1, 3 * SECOND).await;
    let mut member = group.member();
    member.connected().await;
    let published = SystemTime::now();
    produce(&publisher(&group.brokers), &group.retry_topic(), 0..1).await;
    member.receive(1).await;
    assert!(published.elapsed().unwrap() >= 3 * SECOND);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_waits_here_and_at_the_broker_counts_as_lag() {
    let group = Group::new(1, 5 * SECOND).await;
    let mut member = group.member();
    member.connected().await;
    delayed(&member.source.publisher().unwrap(), &group.topic, group.delay, 0..600).await;
    waits(&mut member, 600).await;
    // All that waited in memory: what was fetched behind it, and thrown away by the pause, is still to come.
    member.receive(256).await;
    assert_eq!(member.source.lag(), Some(344));
}
