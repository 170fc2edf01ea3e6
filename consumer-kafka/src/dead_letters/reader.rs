//! The thread that reads: first what is settled, then the letters.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use consumer_core::{
    Message,
    dead_letters::{DeadLettersError, Place},
};
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
    message::{BorrowedMessage, Message as _},
    types::RDKafkaType,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    in_words,
    marks::{Marks, NO_TIMESTAMP},
};
use crate::{
    config::{CONSUMER_DEFAULTS, CONSUMER_FIXED, Connection, validate},
    convert,
    error::KafkaError,
    trouble::{self, Trouble},
};

/// Letters that go over at once, and bytes: a batch may exceed them by one letter.
const BATCH: (usize, usize) = (256, 1 << 20);
/// Batches on the way.
const BATCHES: usize = 8;
const POLL: Duration = Duration::from_millis(50);
/// A topic that was just created is not known everywhere at once.
const MISSING_FOR: Duration = Duration::from_secs(3);
/// After how long without a message the partition is looked at.
const SILENCE: Duration = Duration::from_secs(3);
/// Marks that one session takes away.
const OBSOLETE: usize = 50_000;
/// The driver assigns partitions only to what has the name of a group. It is never joined.
const GROUP: &str = "consumer-kafka-dead-letters";

/// What is to be read.
pub(super) struct Reading {
    pub(super) topic: Arc<str>,
    pub(super) partitions: u32,
    /// The topic of marks, if there is one, and its partitions.
    pub(super) marks: Option<(String, u32)>,
    /// How long nothing may come before it is given up.
    pub(super) patience: Duration,
}

pub(super) struct Opened {
    pub(super) expected: u64,
    /// Marks of letters that retention has deleted.
    pub(super) obsolete: Vec<Place>,
}

pub(super) enum Batch {
    Letters(Vec<Letter>),
    /// All that was there has been read. Without it the end of the channel is no end of the letters.
    Complete,
    Failed(DeadLettersError),
}

pub(super) struct Letter {
    pub(super) place: Place,
    pub(super) timestamp: i64,
    pub(super) message: Message,
}

pub(super) type Opening = oneshot::Receiver<Result<Opened, DeadLettersError>>;

pub(super) fn ended(topic: &str) -> DeadLettersError {
    DeadLettersError::unavailable(format!("reading `{topic}` has ended early: open it again"))
}

/// Starts the thread. It ends when all is read, or nobody wants it any more.
pub(super) fn start(
    connection: &Connection,
    reading: Reading,
) -> Result<(Opening, mpsc::Receiver<Batch>), DeadLettersError> {
    let mut config = connection.shared().config(CONSUMER_DEFAULTS);
    for (name, value) in CONSUMER_FIXED {
        config.set(*name, *value);
    }
    config.set("group.id", GROUP).set("enable.partition.eof", "true").set("statistics.interval.ms", "0");
    validate(&config, RDKafkaType::RD_KAFKA_CONSUMER).map_err(in_words)?;
    let (opening, opened) = oneshot::channel();
    let (batches, received) = mpsc::channel(BATCHES);
    let brokers = connection.brokers().to_owned();
    let work = move || {
        let opening = &mut Some(opening);
        let topic = reading.topic.clone();
        let read = || read(&config, brokers, reading, opening, &batches);
        let outcome = panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
            let message = format!("the thread that reads `{topic}` has panicked");
            Err(Stop::Failed(DeadLettersError::new(message)))
        });
        let Err(Stop::Failed(error)) = outcome else { return };
        // Whoever went away meanwhile does not want to know.
        let _ = match opening.take() {
            Some(opening) => opening.send(Err(error)).map_err(drop),
            None => batches.blocking_send(Batch::Failed(error)).map_err(drop),
        };
    };
    thread::Builder::new().name("kafka-dead-letters".to_owned()).spawn(work).map_err(|error| {
        DeadLettersError::new("the thread that reads dead letters cannot be started").with_source(error)
    })?;
    Ok((opened, received))
}

/// Why reading ends early.
enum Stop {
    Unwanted,
    Failed(DeadLettersError),
}

impl From<DeadLettersError> for Stop {
    fn from(error: DeadLettersError) -> Self {
        Stop::Failed(error)
    }
}

fn read(
    config: &ClientConfig,
    brokers: String,
    reading: Reading,
    opening: &mut Option<oneshot::Sender<Result<Opened, DeadLettersError>>>,
    batches: &mpsc::Sender<Batch>,
) -> Result<(), Stop> {
    let consumer: BaseConsumer<Watch> = config
        .create_with_context(Watch(Trouble::new(config)))
        .map_err(|error| in_words(KafkaError::from_config(error)))?;
    let reader = Reader { consumer, brokers, patience: reading.patience, wanted: batches };
    let mut marks = Marks::default();
    if let Some((topic, partitions)) = &reading.marks {
        let mut odd = 0_u64;
        for part in reader.parts(topic, *partitions)? {
            reader.read(topic, &part, |record| {
                odd += u64::from(!marks.read(record.key(), record.payload()));
                Ok(())
            })?;
        }
        if odd > 0 {
            tracing::warn!(
                topic,
                odd,
                "records that settle no dead letter were left out: they are not understood"
            );
        }
    }
    // After the marks: none of them is of a letter that is behind the end as it is seen here.
    let parts = reader.parts(&reading.topic, reading.partitions)?;
    let settled: u64 = parts.iter().map(|part| marks.count(part.scope(), part.low..part.high)).sum();
    let present: u64 = parts.iter().map(|part| part.high - part.low).sum();
    let obsolete = parts.iter().flat_map(|part| marks.below(part.scope(), part.low)).take(OBSOLETE).collect();
    let opened = Opened { expected: present.saturating_sub(settled), obsolete };
    if opening.take().is_none_or(|opening| opening.send(Ok(opened)).is_err()) {
        return Err(Stop::Unwanted);
    }
    for part in &parts {
        reader.letters(&reading.topic, part, &marks)?;
    }
    batches.blocking_send(Batch::Complete).map_err(|_| Stop::Unwanted)
}

/// A partition as it is at the opening: offsets from `low` to below `high`, some of which no record may have.
struct Part {
    partition: i32,
    low: u64,
    high: u64,
}

impl Part {
    fn scope(&self) -> u64 {
        u64::try_from(self.partition).unwrap_or_default()
    }
}

struct Reader<'a> {
    consumer: BaseConsumer<Watch>,
    brokers: String,
    patience: Duration,
    wanted: &'a mpsc::Sender<Batch>,
}

impl Reader<'_> {
    fn parts(&self, topic: &str, partitions: u32) -> Result<Vec<Part>, Stop> {
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        (0..partitions).map(|partition| self.part(topic, partition)).collect()
    }

    fn part(&self, topic: &str, partition: i32) -> Result<Part, Stop> {
        let began = Instant::now();
        loop {
            let found = self.consumer.fetch_watermarks(topic, partition, Duration::from_secs(1));
            let error = match found {
                Ok((low, high)) => {
                    let (low, high) = (raw(low), raw(high));
                    return Ok(Part { partition, low, high: high.max(low) });
                }
                Err(error) => error,
            };
            trouble::listen(&self.consumer);
            self.go_on(topic, began, &error)?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn wanted(&self) -> Result<(), Stop> {
        if self.wanted.is_closed() { Err(Stop::Unwanted) } else { Ok(()) }
    }

    /// Whether to wait on, after this error, for what has not come since then.
    fn go_on(&self, topic: &str, since: Instant, error: &DriverError) -> Result<(), Stop> {
        self.wanted()?;
        self.judge(topic, since, error)?;
        let trouble = &self.consumer.context().0;
        if since.elapsed() >= self.patience || trouble.refused() {
            let doing = format!("reading the topic `{topic}`");
            return Err(in_words(trouble.explain(&self.brokers, &doing, error)).into());
        }
        Ok(())
    }

    /// Ends with what does not pass by itself.
    fn judge(&self, topic: &str, since: Instant, error: &DriverError) -> Result<(), Stop> {
        let brokers = &self.brokers;
        let error = match error.rdkafka_error_code() {
            Some(Code::TopicAuthorizationFailed) => DeadLettersError::new(format!(
                "kafka at {brokers} does not let this user read the topic `{topic}`"
            )),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
                if since.elapsed() >= MISSING_FOR =>
            {
                DeadLettersError::missing(format!(
                    "the topic `{topic}` at kafka {brokers} was deleted while it was read"
                ))
            }
            _ if matches!(error, DriverError::MessageConsumptionFatal(_)) => {
                DeadLettersError::new(format!("reading `{topic}` at kafka {brokers} failed: {error}"))
            }
            _ => return Ok(()),
        };
        Err(error.into())
    }

    fn assign(&self, topic: &str, partition: i32, offset: u64) -> Result<(), Stop> {
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, partition, offset)
            .and_then(|()| self.consumer.assign(&list))
            .map_err(|error| {
                let message = format!("the partition {topic}/{partition} cannot be read: {error}");
                DeadLettersError::new(message).into()
            })
    }

    /// Calls `each` for all records of a part.
    fn read(
        &self,
        topic: &str,
        part: &Part,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut next = part.low;
        if next == part.high {
            return Ok(());
        }
        self.assign(topic, part.partition, next)?;
        let mut at_the_end = false;
        let (mut since, mut last) = (Instant::now(), silence());
        let mut checked = since;
        while next < part.high {
            match self.consumer.poll(POLL) {
                Some(Ok(record)) => {
                    let offset = raw(record.offset());
                    if offset < next {
                        return Err(self.replaced(topic).into());
                    }
                    next = offset + 1;
                    if offset < part.high {
                        each(&record)?;
                    }
                    at_the_end = false;
                    (since, last) = (Instant::now(), silence());
                    checked = since;
                    self.wanted()?;
                    continue;
                }
                // The last offsets may be without a record: compacted, or the marks of transactions.
                Some(Err(DriverError::PartitionEOF(partition))) if partition == part.partition => {
                    if at_the_end {
                        break;
                    }
                    // For a moment a new leader may take the log to be shorter than it is. Not when it answers this.
                    self.check(topic, part)?;
                    at_the_end = true;
                    self.assign(topic, partition, next)?;
                }
                Some(Err(error)) => last = error,
                // The driver does not tell that a topic was deleted.
                None if checked.elapsed() >= SILENCE => {
                    self.check(topic, part)?;
                    checked = Instant::now();
                }
                None => {}
            }
            self.go_on(topic, since, &last)?;
        }
        Ok(())
    }

    /// Whether the partition is still as long as it was.
    fn check(&self, topic: &str, part: &Part) -> Result<(), Stop> {
        if self.part(topic, part.partition)?.high < part.high {
            return Err(self.replaced(topic).into());
        }
        Ok(())
    }

    fn replaced(&self, topic: &str) -> DeadLettersError {
        let brokers = &self.brokers;
        DeadLettersError::unavailable(format!(
            "the topic `{topic}` at kafka {brokers} has lost messages or was created anew while it was read: open it \
             again"
        ))
    }

    fn letters(&self, topic: &Arc<str>, part: &Part, marks: &Marks) -> Result<(), Stop> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut sent = Instant::now();
        let send = |batch: &mut Vec<Letter>| {
            self.wanted.blocking_send(Batch::Letters(std::mem::take(batch))).map_err(|_| Stop::Unwanted)
        };
        self.read(topic, part, |record| {
            let place = Place { scope: part.scope(), seq: raw(record.offset()) };
            let timestamp = record.timestamp().to_millis().unwrap_or(NO_TIMESTAMP);
            if !marks.hides(place, timestamp) {
                let (message, size) = convert::message(record, topic);
                bytes += size;
                batch.push(Letter { place, timestamp, message });
            }
            // The first ones of a topic far away need not wait for the rest.
            let full = batch.len() >= BATCH.0 || bytes >= BATCH.1 || sent.elapsed() > POLL;
            if full && !batch.is_empty() {
                send(&mut batch)?;
                bytes = 0;
                sent = Instant::now();
            }
            Ok(())
        })?;
        if batch.is_empty() { Ok(()) } else { send(&mut batch) }
    }
}

fn silence() -> DriverError {
    DriverError::MessageConsumption(Code::OperationTimedOut)
}

fn raw(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or_default()
}

struct Watch(Trouble);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        trouble::log(level, facility, line);
    }

    fn error(&self, error: DriverError, reason: &str) {
        if error.rdkafka_error_code() != Some(Code::PartitionEOF) {
            self.0.record(&error, reason);
            tracing::debug!(%error, reason, "reading dead letters");
        }
    }
}

impl ConsumerContext for Watch {}
