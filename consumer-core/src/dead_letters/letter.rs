//! What a dead letter says of itself.

use std::{borrow::Cow, fmt, time::SystemTime};

use crate::{Message, message::wire};

/// Where a dead letter lies, for as long as it is read: a partition and offset, or a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The partition, or the consumer that holds it.
    pub scope: u64,
    /// The offset, or the delivery tag.
    pub seq: u64,
}

/// `3@17`: partition 3, offset 17.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.scope, self.seq)
    }
}

/// A message that was set aside, with what the dead-letter layer wrote about it.
///
/// Everything in it came from the network: nothing is taken for granted, and what cannot be read counts as absent.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    place: Place,
    message: Message,
    death: Option<BrokerDeath>,
}

/// What a broker says that dead-lettered a message by itself (RabbitMQ's `x-death`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDeath {
    /// The queue it was in.
    pub queue: String,
    /// The broker's word for why: `rejected`, `expired`, `maxlen` or `delivery_limit`.
    pub reason: String,
    /// When it happened first.
    pub at: Option<SystemTime>,
}

impl BrokerDeath {
    /// In `queue`, for `reason`.
    pub fn new(queue: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { queue: queue.into(), reason: reason.into(), at: None }
    }

    /// When it happened.
    #[must_use]
    pub fn at(mut self, at: SystemTime) -> Self {
        self.at = Some(at);
        self
    }
}

impl DeadLetter {
    /// The letter at `place`.
    pub fn new(place: Place, message: Message) -> Self {
        Self { place, message, death: None }
    }

    /// Adds what the broker says; of a message with headers of ours it is no more than an accident on the way.
    #[must_use]
    pub fn with_death(mut self, death: Option<BrokerDeath>) -> Self {
        self.death = death;
        self
    }

    /// Where it lies.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The message as it was set aside: payload, key and headers of the original, and the `dead-letter-*` headers.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// What the broker says that set it aside.
    pub fn death(&self) -> Option<&BrokerDeath> {
        self.death.as_ref()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.message.headers().get_str(name)
    }

    fn time(&self, name: &str) -> Option<SystemTime> {
        self.header(name).and_then(|text| wire::parse_time(text).ok())
    }

    /// Whether our dead-letter layer wrote it, rather than the broker or a foreign program.
    pub fn is_ours(&self) -> bool {
        self.header(wire::DEAD_LETTER_REASON).is_some()
    }

    /// Why: a reason of the wire format, `broker` for one that the broker set aside, else `unknown`.
    pub fn reason(&self) -> &str {
        match (self.header(wire::DEAD_LETTER_REASON), &self.death) {
            (Some(reason), _) => reason,
            (None, Some(_)) => "broker",
            (None, None) => "unknown",
        }
    }

    /// The error chain, or what the broker says.
    pub fn error(&self) -> Option<Cow<'_, str>> {
        match (self.header(wire::DEAD_LETTER_ERROR), &self.death) {
            (Some(error), _) => Some(error.into()),
            (None, Some(death)) if !self.is_ours() => {
                Some(format!("the broker dead-lettered it: {}", death.reason).into())
            }
            _ => None,
        }
    }

    /// The consumer that set it aside.
    pub fn consumer(&self) -> Option<&str> {
        self.header(wire::DEAD_LETTER_CONSUMER)
    }

    /// Failed calls.
    pub fn attempts(&self) -> Option<u32> {
        self.header(wire::DEAD_LETTER_ATTEMPTS)?.parse().ok()
    }

    /// When it failed first.
    pub fn first_failed_at(&self) -> Option<SystemTime> {
        self.time(wire::DEAD_LETTER_FIRST_FAILED_AT)
    }

    /// When it failed last; for one that is not ours, when the broker set it aside or it was published.
    pub fn last_failed_at(&self) -> Option<SystemTime> {
        self.time(wire::DEAD_LETTER_LAST_FAILED_AT)
            .or_else(|| self.death.as_ref().filter(|_| !self.is_ours()).and_then(|death| death.at))
            .or_else(|| self.message.timestamp().filter(|_| !self.is_ours()))
    }

    /// How often it was redriven before.
    pub fn redrive_count(&self) -> u32 {
        self.header(wire::REDRIVE_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The kind of source it came from: `kafka`, `amqp`, `memory`, `sql`.
    pub fn source(&self) -> Option<&str> {
        self.header(wire::DEAD_LETTER_SOURCE)
    }

    /// The topic or queue that its consumer consumes, where it goes back to.
    pub fn origin(&self) -> Option<&str> {
        let ours = || self.header("dead-letter-topic").or_else(|| self.header("dead-letter-queue"));
        let broker = || self.death.as_ref().map(|death| &*death.queue).filter(|_| !self.is_ours());
        ours().or_else(broker).filter(|name| !name.is_empty())
    }

    /// The idempotency key a publisher stamped, as text.
    pub fn id(&self) -> Option<Cow<'_, str>> {
        self.message.id().map(|id| String::from_utf8_lossy(id))
    }

    /// The message key, as text.
    pub fn key(&self) -> Option<Cow<'_, str>> {
        self.message.key().map(|key| String::from_utf8_lossy(key))
    }
}
