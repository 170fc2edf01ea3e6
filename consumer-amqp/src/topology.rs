//! Queues, exchanges and bindings, as a source or an administrator asks for them.

use std::time::Duration;

use consumer_core::message::wire;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::error::AmqpError;

/// What the broker's own limit on deliveries is set to. The store counts attempts; this is the last resort.
const DELIVERY_LIMIT: u32 = 1_000;
/// For queues whose messages would be dropped at a limit. RabbitMQ 4 has one of 20 where none is given, and -1 for none;
/// RabbitMQ 3 takes -1 as well, and then drops every message that is given back for the first time.
const NO_LIMIT: u32 = i32::MAX as u32;
/// The longest name AMQP 0-9-1 can carry, in bytes.
const LONGEST_NAME: usize = 255;

/// A durable queue.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | type | quorum | survives the loss of a node |
/// | [`dead_letter`](Self::dead_letter) | `<name>.dead` | where the broker puts what it gives up, instead of dropping it |
/// | [`delivery_limit`](Self::delivery_limit) | 1,000 | a last resort: attempts are counted by the dedup store |
/// | [`single_active_consumer`](Self::single_active_consumer) | no | an order needs it |
///
/// The dead-letter route of a quorum queue is at-least-once: the broker removes a message from the queue when the
/// dead-letter queue has confirmed it. That needs `x-overflow: reject-publish`, which is set as well. A classic queue has
/// neither this nor a delivery limit.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Queue {
    pub(crate) name: String,
    quorum: bool,
    single_active_consumer: bool,
    delivery_limit: Option<u32>,
    dead_letter: Option<String>,
    pub(crate) bindings: Vec<Binding>,
    arguments: Vec<(String, Argument)>,
}

/// From an exchange to a queue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Binding {
    pub(crate) exchange: Exchange,
    pub(crate) routing_key: String,
}

/// The value of a queue argument that has no method of its own.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Argument {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl From<bool> for Argument {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Queue {
    fn new(name: String, quorum: bool) -> Self {
        let dead_letter = Some(format!("{name}.dead"));
        Self {
            name,
            quorum,
            single_active_consumer: false,
            delivery_limit: quorum.then_some(DELIVERY_LIMIT),
            dead_letter,
            bindings: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// A quorum queue.
    pub fn quorum(name: impl Into<String>) -> Self {
        Self::new(name.into(), true)
    }

    /// A classic queue: on one node, without a delivery limit.
    pub fn classic(name: impl Into<String>) -> Self {
        Self::new(name.into(), false)
    }

    /// A queue for dead letters: quorum, with no limit on deliveries and no dead-letter route of its own.
    pub fn dead_letters(name: impl Into<String>) -> Self {
        Self::quorum(name).without_dead_letter()
    }

    /// Where messages for `target` wait for `delay`: nobody consumes it, and what has waited goes on by the broker.
    pub(crate) fn waiting(target: &str, delay: Duration) -> Self {
        let name = format!("{target}.retry.{}", wire::format_delay(delay));
        // Longer than a queue can: a message that comes too early is only handled earlier.
        let millis = i64::try_from(delay.as_millis().max(1)).unwrap_or(i64::MAX).min(MOST_MILLIS);
        Self { delivery_limit: None, ..Self::quorum(name).dead_letter(target) }.argument(MESSAGE_TTL, millis)
    }

    /// Lets one consumer at a time have the queue; the others stand by. An order of messages needs it. It is fixed when
    /// the queue is declared.
    pub fn single_active_consumer(mut self) -> Self {
        self.single_active_consumer = true;
        self
    }

    /// Sets after how many deliveries that were not acked the broker itself gives a message up. It counts what was
    /// handed back by shutdowns and lost connections too, so keep it high. Default: 1,000, for quorum queues.
    pub fn delivery_limit(mut self, deliveries: u32) -> Self {
        self.delivery_limit = Some(deliveries);
        self
    }

    /// Names the queue that the broker puts messages into which were rejected, delivered too often or have expired. It is
    /// declared as well. Default: `<name>.dead`.
    pub fn dead_letter(mut self, queue: impl Into<String>) -> Self {
        self.dead_letter = Some(queue.into());
        self
    }

    /// Leaves out the dead-letter route: **what the broker gives up is lost**. The delivery limit is set to the highest
    /// there is, since RabbitMQ 4 has one of 20 where none is given.
    pub fn without_dead_letter(mut self) -> Self {
        self.dead_letter = None;
        self.delivery_limit = self.quorum.then_some(NO_LIMIT);
        self
    }

    /// Binds the queue to an exchange, which is declared as well.
    pub fn bind(mut self, exchange: Exchange, routing_key: impl Into<String>) -> Self {
        self.bindings.push(Binding { exchange, routing_key: routing_key.into() });
        self
    }

    /// Sets a further argument, such as `x-max-length`.
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Argument>) -> Self {
        self.arguments.push((name.into(), value.into()));
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue that the broker puts dead letters into.
    pub fn dead_letter_queue(&self) -> Option<&str> {
        self.dead_letter.as_deref()
    }

    pub(crate) fn is_quorum(&self) -> bool {
        self.quorum
    }

    pub(crate) fn is_single_active_consumer(&self) -> bool {
        self.single_active_consumer
    }

    pub(crate) fn check(&self) -> Result<(), AmqpError> {
        check_name("queue", &self.name)?;
        if let Some(dead) = &self.dead_letter {
            check_name("dead-letter queue", dead)?;
            if *dead == self.name {
                return Err(AmqpError::config(format!(
                    "the queue `{dead}` is its own dead-letter queue: what is given up would come back"
                )));
            }
        }
        if !self.quorum && self.delivery_limit.is_some() {
            return Err(AmqpError::config(format!(
                "the classic queue `{}` cannot have a delivery limit: only quorum queues have",
                self.name
            )));
        }
        for Binding { exchange, routing_key } in &self.bindings {
            check_name("exchange", &exchange.name)?;
            check_length("routing key", routing_key)?;
        }
        for (name, _) in &self.arguments {
            check_name("argument", name)?;
            if OURS.contains(&name.as_str()) {
                return Err(AmqpError::config(format!(
                    "the argument `{name}` of the queue `{}` is set by a method of its own",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// What it is declared with.
    pub(crate) fn arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        let mut put = |name: &str, value| {
            table.insert(name.into(), value);
        };
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        put(TYPE, text(if self.quorum { "quorum" } else { "classic" }));
        if self.single_active_consumer {
            put(SINGLE_ACTIVE_CONSUMER, AMQPValue::Boolean(true));
        }
        if let Some(limit) = self.delivery_limit {
            put(DELIVERY_LIMIT_ARGUMENT, AMQPValue::LongLongInt(limit.into()));
        }
        if let Some(dead) = &self.dead_letter {
            put(DEAD_LETTER_EXCHANGE, text(""));
            put(DEAD_LETTER_ROUTING_KEY, text(dead));
            if self.quorum {
                put(DEAD_LETTER_STRATEGY, text("at-least-once"));
                put(OVERFLOW, text("reject-publish"));
            }
        }
        for (name, value) in &self.arguments {
            let value = match value {
                Argument::Flag(flag) => AMQPValue::Boolean(*flag),
                Argument::Number(number) => AMQPValue::LongLongInt(*number),
                Argument::Text(value) => text(value),
            };
            put(name, value);
        }
        table
    }
}

pub(crate) const TYPE: &str = "x-queue-type";
pub(crate) const SINGLE_ACTIVE_CONSUMER: &str = "x-single-active-consumer";
pub(crate) const DELIVERY_LIMIT_ARGUMENT: &str = "x-delivery-limit";
pub(crate) const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";
pub(crate) const DEAD_LETTER_ROUTING_KEY: &str = "x-dead-letter-routing-key";
pub(crate) const DEAD_LETTER_STRATEGY: &str = "x-dead-letter-strategy";
pub(crate) const OVERFLOW: &str = "x-overflow";

const MESSAGE_TTL: &str = "x-message-ttl";
/// RabbitMQ takes no time to live beyond 32 bits.
const MOST_MILLIS: i64 = u32::MAX as i64;

const OURS: [&str; 7] = [
    TYPE,
    SINGLE_ACTIVE_CONSUMER,
    DELIVERY_LIMIT_ARGUMENT,
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_ROUTING_KEY,
    DEAD_LETTER_STRATEGY,
    OVERFLOW,
];

/// Whether a queue has the name of one in which messages wait, as [`Queue::waiting`] makes it.
pub(crate) fn is_waiting(name: &str) -> bool {
    name.rsplit_once(".retry.").is_some_and(|(_, delay)| wire::parse_delay(delay).is_some())
}

/// A quorum queue with the defaults.
impl From<&str> for Queue {
    fn from(name: &str) -> Self {
        Self::quorum(name)
    }
}

/// A quorum queue with the defaults.
impl From<String> for Queue {
    fn from(name: String) -> Self {
        Self::quorum(name)
    }
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// To queues bound with the message's routing key.
    Direct,
    /// To every bound queue.
    Fanout,
    /// To queues bound with a pattern that the routing key matches.
    Topic,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Exchange {
    pub(crate) name: String,
    pub(crate) kind: ExchangeKind,
}

impl Exchange {
    /// An exchange of this kind.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        Self { name: name.into(), kind }
    }

    /// To queues bound with the message's routing key.
    pub fn direct(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Direct)
    }

    /// To every bound queue: each service that binds a queue of its own gets every message.
    pub fn fanout(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Fanout)
    }

    /// To queues bound with a pattern that the routing key matches: `orders.*`, `orders.#`.
    pub fn topic(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Topic)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

pub(crate) fn check_name(what: &str, name: &str) -> Result<(), AmqpError> {
    if name.is_empty() {
        return Err(AmqpError::config(format!("the name of a {what} is empty")));
    }
    check_length(what, name)
}

fn check_length(what: &str, name: &str) -> Result<(), AmqpError> {
    if name.len() > LONGEST_NAME {
        let length = name.len();
        return Err(AmqpError::config(format!(
            "the name of a {what} has {length} bytes: AMQP carries {LONGEST_NAME}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(queue: &Queue) -> Vec<String> {
        queue.arguments().inner().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_queue_of_ours_keeps_what_the_broker_gives_up() {
        let queue = Queue::quorum("orders");
        let expected = [
            DEAD_LETTER_EXCHANGE,
            DEAD_LETTER_ROUTING_KEY,
            DEAD_LETTER_STRATEGY,
            DELIVERY_LIMIT_ARGUMENT,
            OVERFLOW,
            TYPE,
        ];
        assert_eq!(names(&queue), expected);
        assert_eq!(queue.dead_letter_queue(), Some("orders.dead"));
        let classic = Queue::classic("orders");
        assert_eq!(names(&classic), [DEAD_LETTER_EXCHANGE, DEAD_LETTER_ROUTING_KEY, TYPE]);
    }

    #[test]
    fn without_a_route_there_is_no_limit_that_would_drop_a_message() {
        for queue in [Queue::quorum("orders").without_dead_letter(), Queue::dead_letters("dead")] {
            assert_eq!(names(&queue), [DELIVERY_LIMIT_ARGUMENT, TYPE]);
            let limit = queue.arguments().inner().get(DELIVERY_LIMIT_ARGUMENT).cloned();
            // With none at all RabbitMQ 4 would take 20.
            assert_eq!(limit, Some(AMQPValue::LongLongInt(NO_LIMIT.into())));
        }
        assert_eq!(names(&Queue::classic("orders").without_dead_letter()), [TYPE]);
    }

    #[test]
    fn a_queue_to_wait_in_leads_back_when_the_time_is_up() {
        let queue = Queue::waiting("orders", Duration::from_secs(300));
        assert_eq!((queue.name(), queue.dead_letter_queue()), ("orders.retry.300s", Some("orders")));
        let table = queue.arguments();
        assert_eq!(table.inner().get(MESSAGE_TTL), Some(&AMQPValue::LongLongInt(300_000)));
        assert!(!table.contains_key(DELIVERY_LIMIT_ARGUMENT));
        assert_eq!(Queue::waiting("orders", Duration::from_millis(1_500)).name(), "orders.retry.1500ms");
    }

    #[test]
    fn what_cannot_be_is_told() {
        let refused = |queue: Queue| queue.check().unwrap_err().to_string();
        assert!(refused(Queue::quorum("")).contains("empty"));
        assert!(refused(Queue::quorum("q".repeat(256))).contains("256 bytes"));
        assert!(refused(Queue::quorum("q").dead_letter("q")).contains("its own dead-letter queue"));
        assert!(refused(Queue::classic("q").delivery_limit(3)).contains("classic"));
        assert!(refused(Queue::quorum("q").argument("x-overflow", "drop-head")).contains("x-overflow"));
        Queue::quorum("q").argument("x-max-length", 10).bind(Exchange::fanout("e"), "").check().unwrap();
    }
}
