//! From the driver's delivery to our message.
//!
//! AMQP's tables have types that headers as bytes do not have. They are shown as text (numbers, booleans and times in
//! decimal, tables as JSON), and kept as they are for the way back: a dead letter carries the original values.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use consumer_core::{HeaderName, Headers, Message, Origin, message::wire};
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::Instant;

/// Set by quorum queues on a message that comes again; not part of the message.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
/// As which header the property `correlation_id` is shown, and the header that becomes that property.
pub(crate) const CORRELATION_ID: &str = "correlation-id";
/// The same for `content_type`.
pub(crate) const CONTENT_TYPE: &str = "content-type";

/// What RabbitMQ says of one delivery beside its headers; `message.native::<AmqpDelivery>()` gives it.
///
/// [`is_redelivered`](Self::is_redelivered) and [`delivery_count`](Self::delivery_count) are hints and never proof: a
/// broker sets them after a connection was lost whether or not the message was seen, and a publisher that sent twice
/// leaves them unset. Only the dedup store knows.
#[derive(Clone)]
pub struct AmqpDelivery {
    redelivered: bool,
    delivery_count: Option<u64>,
    pub(crate) properties: BasicProperties,
}

impl AmqpDelivery {
    /// Whether the broker may have delivered the message before.
    pub fn is_redelivered(&self) -> bool {
        self.redelivered
    }

    /// How often a quorum queue has delivered the message before without an ack.
    pub fn delivery_count(&self) -> Option<u64> {
        self.delivery_count
    }

    /// The priority it was published with.
    pub fn priority(&self) -> Option<u8> {
        *self.properties.priority()
    }

    /// Where an answer is expected.
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(ShortString::as_str)
    }

    /// The application's name for the kind of message (the property `type`).
    pub fn kind(&self) -> Option<&str> {
        self.properties.kind().as_ref().map(ShortString::as_str)
    }

    /// The application that published it, as it says.
    pub fn app_id(&self) -> Option<&str> {
        self.properties.app_id().as_ref().map(ShortString::as_str)
    }

    /// The user who published it, as the broker has checked.
    pub fn user_id(&self) -> Option<&str> {
        self.properties.user_id().as_ref().map(ShortString::as_str)
    }
}

/// Values of properties may be credentials.
impl fmt::Debug for AmqpDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpDelivery")
            .field("redelivered", &self.redelivered)
            .field("delivery_count", &self.delivery_count)
            .finish_non_exhaustive()
    }
}

/// Makes messages of one queue.
#[derive(Debug)]
pub(crate) struct Reader {
    queue: Arc<str>,
    /// Nearly always those of the message before.
    exchange: Arc<str>,
    routing_key: Arc<str>,
}

impl Reader {
    pub(crate) fn new(queue: &str) -> Self {
        Self { queue: queue.into(), exchange: "".into(), routing_key: queue.into() }
    }

    pub(crate) fn message(&mut self, delivery: Delivery, hold_until: Option<Instant>) -> Message {
        let Delivery { exchange, routing_key, redelivered, properties, data, .. } = delivery;
        let mut builder = Message::builder().payload(data).origin(Origin::Queue {
            system: "amqp",
            queue: self.queue.clone(),
            exchange: same(&mut self.exchange, exchange.as_str()),
            routing_key: same(&mut self.routing_key, routing_key.as_str()),
        });
        if let Some(until) = hold_until {
            builder = builder.hold_until(until);
        }
        let headers = headers(&properties);
        if let Some(key) = headers.get(wire::MESSAGE_KEY) {
            builder = builder.key(key.clone());
        }
        if let Some(id) = properties.message_id() {
            builder = builder.fallback_id(Bytes::copy_from_slice(id.as_str().as_bytes()));
        }
        if let Some(seconds) = properties.timestamp()
            && let Some(at) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
        {
            builder = builder.timestamp(at);
        }
        let native = AmqpDelivery { redelivered, delivery_count: delivery_count(&properties), properties };
        builder.headers(headers).native(Arc::new(native)).build()
    }
}

fn same(last: &mut Arc<str>, text: &str) -> Arc<str> {
    if **last != *text {
        *last = text.into();
    }
    last.clone()
}

fn delivery_count(properties: &BasicProperties) -> Option<u64> {
    match properties.headers().as_ref()?.inner().get(DELIVERY_COUNT)? {
        AMQPValue::LongLongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some((*count).into()),
        AMQPValue::ShortInt(count) => u64::try_from(*count).ok(),
        AMQPValue::ShortShortInt(count) => u64::try_from(*count).ok(),
        AMQPValue::ShortUInt(count) => Some((*count).into()),
        AMQPValue::ShortShortUInt(count) => Some((*count).into()),
        _ => None,
    }
}

fn headers(properties: &BasicProperties) -> Headers {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty).inner();
    let mut headers = Headers::with_capacity(table.len() + 1);
    for (name, value) in table.iter().filter(|(name, _)| name.as_str() != DELIVERY_COUNT) {
        let name = header_name(name.as_str());
        match value {
            AMQPValue::FieldArray(values) => {
                for value in values.as_slice() {
                    append(&mut headers, name.clone(), value);
                }
            }
            value => append(&mut headers, name, value),
        }
    }
    let shown = [(CORRELATION_ID, properties.correlation_id()), (CONTENT_TYPE, properties.content_type())];
    for (name, value) in shown {
        if let Some(value) = value
            && !headers.contains(name)
        {
            headers.append(name, value.as_str().to_owned());
        }
    }
    headers
}

fn append(headers: &mut Headers, name: HeaderName, value: &AMQPValue) {
    match value {
        AMQPValue::Void => headers.append_null(name),
        AMQPValue::LongString(text) => headers.append(name, Bytes::copy_from_slice(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => headers.append(name, Bytes::copy_from_slice(bytes.as_slice())),
        other => headers.append(name, text_of(other)),
    }
}

/// So deep are arrays and tables shown, and no deeper: a message of 128 KiB can have 26,000 levels, and the stack has an end.
const DEEPEST: usize = 100;

/// What has no byte form of its own, as text.
fn text_of(value: &AMQPValue) -> String {
    match json_of(value, DEEPEST) {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn json_of(value: &AMQPValue, deepest: usize) -> serde_json::Value {
    use serde_json::Value;
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    match value {
        AMQPValue::Boolean(flag) => Value::from(*flag),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        // Neither has every value in JSON.
        AMQPValue::Float(number) => Value::from(number.to_string()),
        AMQPValue::Double(number) => Value::from(number.to_string()),
        AMQPValue::DecimalValue(decimal) => Value::from(format!("{}e-{}", decimal.value, decimal.scale)),
        AMQPValue::ShortString(value) => text(value.as_str().as_bytes()),
        AMQPValue::LongString(value) => text(value.as_bytes()),
        AMQPValue::ByteArray(value) => text(value.as_slice()),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if deepest == 0 => Value::from("…"),
        AMQPValue::FieldArray(values) => {
            values.as_slice().iter().map(|value| json_of(value, deepest - 1)).collect()
        }
        AMQPValue::FieldTable(table) => {
            let entries =
                table.inner().iter().map(|(name, value)| (name.to_string(), json_of(value, deepest - 1)));
            Value::Object(entries.collect())
        }
        AMQPValue::Void => Value::Null,
    }
}

/// The names that nearly every message has cost no allocation.
fn header_name(name: &str) -> HeaderName {
    for known in [wire::MESSAGE_ID, wire::MESSAGE_KEY, wire::TRACEPARENT, wire::TRACESTATE] {
        if name == known {
            return known.into();
        }
    }
    name.to_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::{DecimalValue, FieldArray};

    fn read(properties: BasicProperties) -> Message {
        let mut delivery = Delivery::mock(1, "ex".into(), "rk".into(), true, b"{}".to_vec());
        delivery.properties = properties;
        Reader::new("q").message(delivery, None)
    }

    fn with_headers(entries: Vec<(&str, AMQPValue)>) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.into(), value);
        }
        BasicProperties::default().with_headers(table)
    }

    #[test]
    fn the_origin_the_key_and_the_id_are_found() {
        let headers = vec![("message-key", AMQPValue::LongString("o-1".into()))];
        let message = read(with_headers(headers).with_message_id("id-1".into()).with_timestamp(17));
        assert_eq!(message.key().map(|key| &key[..]), Some(&b"o-1"[..]));
        assert_eq!(message.id().map(|id| &id[..]), Some(&b"id-1"[..]));
        assert_eq!(message.timestamp(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(17)));
        let Origin::Queue { queue, exchange, routing_key, .. } = message.origin() else { panic!() };
        assert_eq!((&**queue, &**exchange, &**routing_key), ("q", "ex", "rk"));
        assert!(message.native::<AmqpDelivery>().unwrap().is_redelivered());
    }

    #[test]
    fn the_id_in_the_header_goes_before_the_property() {
        let headers = vec![("message-id", AMQPValue::LongString("header".into()))];
        let message = read(with_headers(headers).with_message_id("property".into()));
        assert_eq!(message.id().map(|id| &id[..]), Some(&b"header"[..]));
        assert_eq!(read(BasicProperties::default().with_message_id("".into())).id(), None);
    }

    #[test]
    fn values_without_a_byte_form_are_shown_as_text() {
        let mut table = FieldTable::default();
        table.insert("n".into(), AMQPValue::LongInt(1));
        let array = FieldArray::from(vec![AMQPValue::LongString("a".into()), AMQPValue::LongInt(2)]);
        let message = read(with_headers(vec![
            ("bool", AMQPValue::Boolean(true)),
            ("int", AMQPValue::LongLongInt(-7)),
            ("double", AMQPValue::Double(1.5)),
            ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 199 })),
            ("bytes", AMQPValue::ByteArray(b"\0\xff"[..].into())),
            ("void", AMQPValue::Void),
            ("table", AMQPValue::FieldTable(table)),
            ("array", AMQPValue::FieldArray(array)),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
        ]));
        let headers = message.headers();
        for (name, text) in [
            ("bool", "true"),
            ("int", "-7"),
            ("double", "1.5"),
            ("decimal", "199e-2"),
            ("table", r#"{"n":1}"#),
        ] {
            assert_eq!(headers.get_str(name), Some(text), "{name}");
        }
        assert_eq!(headers.get("bytes").map(|value| &value[..]), Some(&b"\0\xff"[..]));
        assert!(headers.contains("void") && headers.get("void").is_none());
        let array: Vec<_> = headers.get_all("array").flatten().map(|value| &value[..]).collect();
        assert_eq!(array, [b"a", b"2"]);
        assert!(!headers.contains("x-delivery-count"));
        assert_eq!(message.native::<AmqpDelivery>().unwrap().delivery_count(), Some(3));
    }
}
