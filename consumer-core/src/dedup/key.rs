//! Where the idempotency key of a message comes from.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{Failure, FailureKind, Message, Origin, closure, message::wire};

/// Names the *effect* of a message: two messages with one key take effect once.
///
/// There is no silent fallback from one kind of key to another: a message without its key is dealt with by
/// [`MissingKey`].
#[derive(Clone)]
pub struct IdempotencyKey(Kind);

type Extract = dyn Fn(&Message) -> Result<Option<Bytes>, Failure> + Send + Sync;

#[derive(Clone)]
enum Kind {
    Header(Arc<str>),
    #[cfg(feature = "json")]
    Pointer(Arc<str>),
    CloudEvent,
    Position,
    Closure(Arc<Extract>),
}

/// What becomes of a message without an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingKey {
    /// It fails for good, with the reason `no-key`.
    #[default]
    Reject,
    /// It is handled without deduplication.
    Process,
}

impl IdempotencyKey {
    /// The id a publisher stamps: the header `message-id`, else the broker's own id property. The default.
    pub fn message_id() -> Self {
        Self::header(wire::MESSAGE_ID)
    }

    /// The first value of a header. `message-id` is [`message_id`](Self::message_id).
    pub fn header(name: impl Into<Arc<str>>) -> Self {
        Self(Kind::Header(name.into()))
    }

    /// The string or number that a JSON pointer (RFC 6901) finds in the payload, such as `/order_id`.
    #[cfg(feature = "json")]
    pub fn json_pointer(pointer: impl Into<Arc<str>>) -> Self {
        Self(Kind::Pointer(pointer.into()))
    }

    /// The `source` and `id` attributes of a CloudEvent in binary mode: headers with the prefix `ce_` on logs,
    /// `cloudEvents:` on queues (CloudEvents Kafka and AMQP bindings 1.0).
    pub fn cloud_event() -> Self {
        Self(Kind::CloudEvent)
    }

    /// The position in the source. It catches redeliveries only: the same event published twice has two positions.
    /// Refused on queues, which have none. A redriven message keeps the position it had first.
    pub fn position() -> Self {
        Self(Kind::Position)
    }

    /// Whatever the closure finds; `None` means that the message has no key. Where it panics the message fails for good.
    pub fn from_fn(f: impl Fn(&Message) -> Option<Bytes> + Send + Sync + 'static) -> Self {
        Self(Kind::Closure(Arc::new(move |message| Ok(f(message)))))
    }

    /// The key of a message; an empty one is none.
    ///
    /// # Errors
    /// When the payload that it is taken from cannot be read, when it is the position of a message that has none, and
    /// when the closure panics. Trying again finds the same.
    pub fn of(&self, message: &Message) -> Result<Option<Bytes>, Failure> {
        let key = match &self.0 {
            Kind::Header(name) if &**name == wire::MESSAGE_ID => message.id().cloned(),
            Kind::Header(name) => message.headers().get(name).cloned(),
            #[cfg(feature = "json")]
            Kind::Pointer(pointer) => from_json(message, pointer)?,
            Kind::CloudEvent => cloud_event(message),
            Kind::Position => Some(position(message)?),
            Kind::Closure(f) => closure::call("the idempotency key", || f(message))??,
        };
        Ok(key.filter(|key| !key.is_empty()))
    }
}

impl Default for IdempotencyKey {
    fn default() -> Self {
        Self::message_id()
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Header(name) => write!(f, "the header `{name}`"),
            #[cfg(feature = "json")]
            Kind::Pointer(pointer) => write!(f, "`{pointer}` in the JSON payload"),
            Kind::CloudEvent => f.write_str("the CloudEvent's source and id"),
            Kind::Position => f.write_str("the position in the source"),
            Kind::Closure(_) => f.write_str("a closure"),
        }
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({self})")
    }
}

#[cfg(feature = "json")]
fn from_json(message: &Message, pointer: &str) -> Result<Option<Bytes>, Failure> {
    let value: serde_json::Value = serde_json::from_slice(message.payload()).map_err(Failure::undecodable)?;
    Ok(match value.pointer(pointer) {
        Some(serde_json::Value::String(text)) => Some(Bytes::from(text.clone())),
        Some(serde_json::Value::Number(number)) => Some(Bytes::from(number.to_string())),
        _ => None,
    })
}

fn cloud_event(message: &Message) -> Option<Bytes> {
    let prefix = if message.origin().has_position() { "ce_" } else { "cloudEvents:" };
    let attribute = |name: &str| message.headers().get(&format!("{prefix}{name}")).filter(|v| !v.is_empty());
    let (source, id) = (attribute("source")?, attribute("id")?);
    // The length keeps ("a", "bc") and ("ab", "c") apart.
    let mut key = source.len().to_string().into_bytes();
    key.push(b':');
    key.extend_from_slice(source);
    key.extend_from_slice(id);
    Some(key.into())
}

fn position(message: &Message) -> Result<Bytes, Failure> {
    let headers = message.headers();
    for prefix in [wire::REDRIVE_PREFIX, wire::RETRY_PREFIX] {
        let is_ours = prefix == wire::REDRIVE_PREFIX || message.is_delayed_copy();
        let part = |name: &str| headers.get_str(&format!("{prefix}{name}"));
        if let (Some(topic), Some(partition), Some(offset)) =
            (part("topic"), part("partition"), part("offset"))
            && is_ours
        {
            return Ok(format!("{topic}/{partition}@{offset}").into());
        }
    }
    match message.origin() {
        Origin::Log { topic, partition, offset, .. } => Ok(format!("{topic}/{partition}@{offset}").into()),
        origin => Err(Failure::of_kind(
            FailureKind::NoKey,
            format!("the position cannot be the idempotency key: a message from `{origin}` has none"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &IdempotencyKey, message: &Message) -> Option<String> {
        key.of(message).unwrap().map(|k| String::from_utf8(k.to_vec()).unwrap())
    }

    #[test]
    fn an_empty_key_is_none() {
        assert_eq!(text(&IdempotencyKey::message_id(), &Message::builder().id("").build()), None);
        assert_eq!(text(&IdempotencyKey::header("x"), &Message::builder().header("x", "").build()), None);
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_json_pointer_takes_strings_and_numbers_and_reports_what_is_not_json() {
        let key = IdempotencyKey::json_pointer("/order/id");
        assert_eq!(text(&key, &Message::new(r#"{"order":{"id":"o-1"}}"#)), Some("o-1".into()));
        assert_eq!(text(&key, &Message::new(r#"{"order":{"id":17}}"#)), Some("17".into()));
        assert_eq!(text(&key, &Message::new("{}")), None);
        assert_eq!(key.of(&Message::new("{")).unwrap_err().kind(), FailureKind::Undecodable);
    }

    #[test]
    fn a_position_survives_a_redrive_and_is_refused_on_queues() {
        let at = |topic: &str| Origin::Log { system: "kafka", topic: topic.into(), partition: 2, offset: 9 };
        let key = IdempotencyKey::position();
        assert_eq!(text(&key, &Message::builder().origin(at("orders")).build()), Some("orders/2@9".into()));
        let redriven = Message::builder()
            .header("redrive-topic", "orders")
            .header("redrive-partition", "2")
            .header("redrive-offset", "5")
            .origin(at("orders"));
        assert_eq!(text(&key, &redriven.build()), Some("orders/2@5".into()));
        let queue =
            Origin::Queue { system: "amqp", queue: "q".into(), exchange: "".into(), routing_key: "q".into() };
        assert_eq!(key.of(&Message::builder().origin(queue).build()).unwrap_err().kind(), FailureKind::NoKey);
    }

    #[test]
    fn the_parts_of_a_cloud_event_are_kept_apart() {
        let event = |source: &'static str, id: &'static str| {
            let origin = Origin::Log { system: "kafka", topic: "t".into(), partition: 0, offset: 0 };
            let message = Message::builder().header("ce_source", source).header("ce_id", id).origin(origin);
            text(&IdempotencyKey::cloud_event(), &message.build())
        };
        assert!(event("a", "bc").is_some());
        assert_ne!(event("a", "bc"), event("ab", "c"));
        assert_eq!(event("", "c"), None);
    }
}
