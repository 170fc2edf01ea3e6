//! Handing messages to the driver, in order, and its answers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use consumer_core::{Headers, Outgoing, PublishError};
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
    message::{DeliveryResult, Header, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, NoCustomPartitioner, ProducerContext},
};
use tokio::sync::oneshot;

use crate::trouble::{self, Trouble};

/// Messages, and bytes of payload, that wait for room in the driver's queue, at most.
const WAITING: usize = 10_000;
const WAITING_BYTES: usize = 64 << 20;

pub(super) struct Pending {
    topic: Arc<str>,
    outgoing: Outgoing,
    answer: oneshot::Sender<Result<(), PublishError>>,
    since: Instant,
}

impl Pending {
    /// To `topic`, if it is not the target that the message goes to.
    pub(super) fn new(
        topic: Option<String>,
        outgoing: Outgoing,
        answer: oneshot::Sender<Result<(), PublishError>>,
    ) -> Self {
        let topic = topic.map_or_else(|| outgoing.target().into(), Into::into);
        Self { topic, outgoing, answer, since: Instant::now() }
    }

    fn bytes(&self) -> usize {
        self.outgoing.message().payload().len()
    }
}

/// A message that is with the driver.
pub(super) struct Sent {
    target: Arc<str>,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

pub(super) struct Reports {
    brokers: String,
    trouble: Trouble,
    limits: Limits,
    waiting: Mutex<Waiting>,
    count: AtomicUsize,
    /// The driver's producer has failed for good.
    dead: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long a message may wait for room before it is given up.
    pub(super) patience: Duration,
    /// A larger payload never has room.
    pub(super) bytes: usize,
}

/// Waits for room in the driver's queue: as long as anything does, everything queues up behind it.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Pending>,
    bytes: usize,
}

impl Reports {
    pub(super) fn new(brokers: &str, trouble: Trouble, limits: Limits) -> Self {
        Self {
            brokers: brokers.to_owned(),
            trouble,
            limits,
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        }
    }

    /// Whether no message can ever be published by this producer again.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn has_waiting(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    pub(super) fn publish(&self, producer: &BaseProducer<Self>, pending: Pending) {
        if pending.bytes() > self.limits.bytes {
            let message = format!(
                "a message of {} bytes to {} is larger than the queue of the publisher, {} bytes \
                 (`queue.buffering.max.kbytes`)",
                pending.bytes(),
                pending.topic,
                self.limits.bytes
            );
            let _ = pending.answer.send(Err(PublishError::too_large(message)));
            return;
        }
        if !self.has_waiting() {
            match self.send(producer, pending) {
                Ok(()) => return,
                Err(pending) => self.wait(pending),
            }
        } else {
            self.wait(pending);
        }
        // There may have been room again before this message began to wait.
        self.send_waiting(producer);
    }

    fn wait(&self, pending: Pending) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.queue.len() >= WAITING || waiting.bytes >= WAITING_BYTES {
            let message = format!(
                "kafka at {} does not keep up: the queue of the publisher is full (topic {})",
                self.brokers, pending.topic
            );
            let _ = pending.answer.send(Err(PublishError::unavailable(message)));
            return;
        }
        waiting.bytes += pending.bytes();
        waiting.queue.push_back(pending);
        self.count.store(waiting.queue.len(), Ordering::SeqCst);
    }

    /// To be called when there may be room: that is *after* delivery reports were served, since the driver counts a
    /// message until its report is freed.
    pub(super) fn send_waiting(&self, producer: &BaseProducer<Self>) {
        if !self.has_waiting() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(pending) = waiting.queue.pop_front() {
            let bytes = pending.bytes();
            waiting.bytes -= bytes;
            let Err(pending) = self.send(producer, pending) else { continue };
            if pending.since.elapsed() > self.limits.patience {
                let late = DriverError::MessageProduction(Code::MessageTimedOut);
                let failure = self.failure(&late, &pending.topic, None);
                let _ = pending.answer.send(Err(failure));
            } else {
                waiting.bytes += bytes;
                waiting.queue.push_front(pending);
                break;
            }
        }
        self.count.store(waiting.queue.len(), Ordering::SeqCst);
    }

    /// Gives the message back when the driver's queue is full.
    #[expect(
        clippy::result_large_err,
        reason = "the error is the message itself, and goes no further than the caller"
    )]
    fn send(&self, producer: &BaseProducer<Self>, pending: Pending) -> Result<(), Pending> {
        let Pending { topic, outgoing, answer, since } = pending;
        let message = outgoing.message();
        let sent = Box::new(Sent { target: topic.clone(), answer });
        let mut record: BaseRecord<'_, [u8], [u8], Box<Sent>> =
            BaseRecord::with_opaque_to(&topic, sent).headers(headers(&outgoing.headers()));
        if !message.is_tombstone() {
            record = record.payload(message.payload());
        }
        if let Some(key) = message.key() {
            record = record.key(key);
        }
        match producer.send(record) {
            Ok(()) => Ok(()),
            Err((DriverError::MessageProduction(Code::QueueFull), record)) => {
                let answer = record.delivery_opaque.answer;
                Err(Pending { topic, outgoing, answer, since })
            }
            Err((error, record)) => {
                let Sent { target, answer } = *record.delivery_opaque;
                let _ = answer.send(Err(self.failure(&error, &target, None)));
                Ok(())
            }
        }
    }

    fn failure(&self, error: &DriverError, target: &str, partition: Option<i32>) -> PublishError {
        let partition = partition.filter(|p| *p >= 0).map_or(String::new(), |p| format!("/{p}"));
        let brokers = &self.brokers;
        let place = format!("{target}{partition} at kafka {brokers}");
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                PublishError::unroutable(format!("the topic `{target}` does not exist at kafka {brokers}"))
            }
            Some(Code::InvalidTopic) => PublishError::unroutable(format!(
                "`{target}` cannot be the name of a topic at kafka {brokers}"
            )),
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge) => {
                PublishError::too_large(format!("the message is too large for {place}: {error}"))
            }
            Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                PublishError::refused(format!("this user may not write to {place}"))
            }
            Some(Code::MessageTimedOut | Code::QueueFull) | None => {
                let why = self.trouble.explain(brokers, &format!("publishing to {target}{partition}"), error);
                if why.is_authentication() {
                    PublishError::refused(why.to_string())
                } else {
                    PublishError::unavailable(why.to_string())
                }
            }
            Some(
                Code::InvalidRecord
                | Code::InvalidMessage
                | Code::PolicyViolation
                | Code::InvalidArgument
                | Code::InvalidTimestamp
                | Code::UnsupportedForMessageFormat,
            ) => PublishError::refused(format!("kafka refused the message for {place}: {error}")),
            Some(code) => {
                if code == Code::Fatal {
                    self.dead.store(true, Ordering::Relaxed);
                }
                PublishError::unavailable(format!("the message was not confirmed by {place}: {error}"))
            }
        }
    }
}

fn headers(from: &Headers) -> OwnedHeaders {
    from.iter().fold(OwnedHeaders::new_with_capacity(from.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: value.map(|value| &value[..]) })
    })
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        trouble::log(level, facility, line);
    }

    fn error(&self, error: DriverError, reason: &str) {
        self.trouble.record(&error, reason);
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            tracing::warn!(brokers = self.brokers, reason, "kafka is not reachable for the publisher");
        }
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            // An idempotent producer that cannot tell any more what the broker has.
            tracing::error!(brokers = self.brokers, reason, "the kafka publisher starts anew");
            self.dead.store(true, Ordering::Relaxed);
        }
        tracing::debug!(%error, reason, "kafka publisher error");
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let Sent { target, answer } = *sent;
        let outcome = match result {
            Ok(_) => {
                self.trouble.clear();
                Ok(())
            }
            Err((error, message)) => Err(self.failure(error, &target, Some(message.partition()))),
        };
        // Whoever dropped the future does not want to know.
        let _ = answer.send(outcome);
    }
}
