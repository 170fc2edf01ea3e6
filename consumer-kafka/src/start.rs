//! Where partitions begin, and whether the topics are there at all.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError as DriverError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use crate::{
    builder::StartPosition,
    codes::is_of_a_rebalance,
    error::{KafkaError, Kind},
    rebalance::Callbacks,
    retry::{RetryTopic, RetryTopics},
    trouble,
};

/// One look-up; a client that is not connected answers late.
const CALL: Duration = Duration::from_secs(10);
const LIST: Duration = Duration::from_secs(10);
/// A topic that was just created is not known everywhere at once.
const MISSING_FOR: Duration = Duration::from_secs(3);
const LOOK_UP_FOR: Duration = Duration::from_secs(60);
/// Once running, outages are waited out, as long as the group takes a member for alive that does not poll.
const LOOK_UP_AGAIN_FOR: Duration = Duration::from_secs(200);

type Starts = HashMap<(String, i32), u64>;

/// Commits the start offsets of partitions without a committed offset and writes them into `list`.
///
/// Without the commit a process that dies before its first one would find no committed offset again, look the end of
/// the partition up once more, and leave out what came meanwhile.
pub(crate) fn resolve(
    consumer: &BaseConsumer<Callbacks>,
    callbacks: &Callbacks,
    list: &mut TopicPartitionList,
) -> Result<(), KafkaError> {
    // A retry topic starts at its first copy, wherever the group starts in its topics.
    let is_of_topics = |topic: &str| callbacks.options.retry.delay_of(topic).is_none();
    if callbacks.options.start == StartPosition::Earliest
        || !list.elements().iter().any(|elem| is_of_topics(elem.topic()))
    {
        return Ok(());
    }
    let deadline = Instant::now() + if callbacks.has_joined() { LOOK_UP_AGAIN_FOR } else { LOOK_UP_FOR };
    loop {
        // Another member may have committed since the last try.
        list.set_all_offsets(Offset::Invalid).ok();
        let mut wanted = TopicPartitionList::with_capacity(list.count());
        for elem in list.elements().iter().filter(|elem| is_of_topics(elem.topic())) {
            wanted.add_partition(elem.topic(), elem.partition());
        }
        match try_resolve(consumer, &callbacks.options.start, wanted)
            .and_then(|starts| commit(consumer, starts, list))
        {
            Ok(()) => return Ok(()),
            // The group has gone on without this member: the assignment is void, and the driver takes it back as soon
            // as it may.
            Err(error) if is_of_a_rebalance(&error) => return Ok(()),
            Err(error) if denied(&error) => {
                return Err(KafkaError::new(
                    Kind::Denied,
                    format!(
                        "kafka at {} does not permit to find the start position: {error}",
                        callbacks.brokers
                    ),
                ));
            }
            Err(error) if Instant::now() >= deadline || callbacks.shared.is_closing() => {
                return Err(KafkaError::new(
                    Kind::Unreachable,
                    format!("the start position could not be found at kafka {}: {error}", callbacks.brokers),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "the start position could not be found yet");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn commit(
    consumer: &BaseConsumer<Callbacks>,
    starts: Starts,
    list: &mut TopicPartitionList,
) -> KafkaResult<()> {
    if starts.is_empty() {
        return Ok(());
    }
    let mut found = TopicPartitionList::with_capacity(starts.len());
    for ((topic, partition), offset) in &starts {
        let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        found.add_partition_offset(topic, *partition, offset)?;
        list.set_partition_offset(topic, *partition, offset)?;
    }
    consumer.commit(&found, CommitMode::Sync)
}

fn denied(error: &DriverError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed)
    )
}

fn try_resolve(
    consumer: &BaseConsumer<Callbacks>,
    start: &StartPosition,
    list: TopicPartitionList,
) -> KafkaResult<Starts> {
    let committed = consumer.committed_offsets(list, CALL)?;
    let mut fresh = Vec::new();
    for elem in committed.elements() {
        elem.error()?;
        if !matches!(elem.offset(), Offset::Offset(_)) {
            fresh.push((elem.topic().to_owned(), elem.partition()));
        }
    }
    let end =
        |topic: &str, partition| consumer.fetch_watermarks(topic, partition, CALL).map(|(_, high)| raw(high));
    let mut starts = Starts::new();
    match start {
        StartPosition::Earliest => {}
        StartPosition::Latest => {
            for (topic, partition) in fresh {
                let end = end(&topic, partition)?;
                starts.insert((topic, partition), end);
            }
        }
        StartPosition::Timestamp(at) => {
            let mut times = TopicPartitionList::new();
            for (topic, partition) in &fresh {
                times.add_partition_offset(topic, *partition, Offset::Offset(millis(*at)))?;
            }
            let found = if fresh.is_empty() { times } else { consumer.offsets_for_times(times, CALL)? };
            for elem in found.elements() {
                elem.error()?;
                let offset = match elem.offset() {
                    Offset::Offset(offset) => raw(offset),
                    _ => end(elem.topic(), elem.partition())?,
                };
                starts.insert((elem.topic().to_owned(), elem.partition()), offset);
            }
        }
        StartPosition::Offsets(offsets) => {
            for (topic, partition) in fresh {
                let key = (topic, u32::try_from(partition).unwrap_or_default());
                if let Some(offset) = offsets.get(&key) {
                    starts.insert((key.0, partition), *offset);
                }
            }
        }
    }
    Ok(starts)
}

fn raw(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or_default()
}

fn millis(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Waits until a broker has told that all these topics exist.
pub(crate) fn check_topics<'a>(
    consumer: &BaseConsumer<Callbacks>,
    callbacks: &Callbacks,
    topics: impl IntoIterator<Item = &'a str>,
) -> Result<(), KafkaError> {
    let began = Instant::now();
    for topic in topics {
        check_topic(consumer, callbacks, topic, began)?;
    }
    callbacks.trouble.clear();
    Ok(())
}

/// Looks for retry topics of the group whose delays are no longer configured.
pub(crate) fn find_left_over(consumer: &BaseConsumer<Callbacks>, topics: &[String], retry: &RetryTopics) {
    match consumer.fetch_metadata(None, LIST) {
        Ok(all) => {
            // One with an error cannot be consumed: it is being deleted, or not for this user.
            let sound = all.topics().iter().filter(|topic| topic.error().is_none());
            let names = sound.map(|topic| topic.name());
            retry.find_left_over(names.filter(|name| !topics.iter().any(|topic| topic == name)));
        }
        Err(error) => {
            tracing::warn!(%error, "topics could not be listed: copies for delays no longer configured are not looked for");
        }
    }
    for RetryTopic { name, .. } in retry.left_over() {
        tracing::info!(topic = name, "its delay is no longer configured: what waits in it is consumed");
    }
}

fn check_topic(
    consumer: &BaseConsumer<Callbacks>,
    callbacks: &Callbacks,
    topic: &str,
    began: Instant,
) -> Result<(), KafkaError> {
    let mut first_missed = None;
    loop {
        let outcome = consumer.fetch_metadata(Some(topic), Duration::from_millis(500));
        trouble::listen(consumer);
        let brokers = &callbacks.brokers;
        let error = match outcome {
            Ok(metadata) => match topic_state(&metadata, topic) {
                Ok(_) => return Ok(()),
                Err(code) => {
                    let missing = matches!(
                        code,
                        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
                    );
                    let since = *first_missed.get_or_insert_with(Instant::now);
                    if missing && since.elapsed() >= MISSING_FOR {
                        return Err(KafkaError::new(
                            Kind::MissingTopic,
                            format!("the topic `{topic}` does not exist at kafka {brokers}: create it first"),
                        ));
                    }
                    if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                        return Err(KafkaError::new(
                            Kind::Denied,
                            format!("kafka at {brokers} does not let this user read the topic `{topic}`"),
                        ));
                    }
                    DriverError::MetadataFetch(code)
                }
            },
            Err(error) => error,
        };
        let late = began.elapsed() >= callbacks.options.start_timeout;
        if late || callbacks.trouble.refused() || callbacks.shared.is_closing() {
            return Err(callbacks.trouble.explain(
                brokers,
                &format!("looking for the topic `{topic}`"),
                &error,
            ));
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// The number of partitions of a topic, or why it cannot be used.
pub(crate) fn topic_state(
    metadata: &rdkafka::metadata::Metadata,
    topic: &str,
) -> Result<usize, RDKafkaErrorCode> {
    let found = metadata.topics().iter().find(|t| t.name() == topic).ok_or(RDKafkaErrorCode::UnknownTopic)?;
    match found.error() {
        Some(error) if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Err(error.into()),
        _ if found.partitions().is_empty() => Err(RDKafkaErrorCode::UnknownTopic),
        _ => Ok(found.partitions().len()),
    }
}
