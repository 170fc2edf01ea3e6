//! From our message to what AMQP carries beside the payload.
//!
//! A message that came from RabbitMQ keeps its properties and the types of its headers. What would act again on the
//! copy is left out: an expiry, the user it was published by (the broker refuses another one), and the headers `CC` and
//! `BCC`, which route it to further queues.

use consumer_core::{Headers, Outgoing, PublishError, message::wire};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};

use crate::delivery::{AmqpDelivery, CONTENT_TYPE, CORRELATION_ID, DELIVERY_COUNT};

const PERSISTENT: u8 = 2;
/// The longest text of a property or name of a header, in bytes.
const SHORT: usize = 255;
const ROUTES: [&str; 2] = ["CC", "BCC"];

/// # Errors
/// When AMQP cannot carry it.
pub(super) fn properties(outgoing: &Outgoing) -> Result<BasicProperties, PublishError> {
    let native = outgoing.message().native::<AmqpDelivery>().map(|native| &native.properties);
    let headers = outgoing.headers();
    let mut dropped = Vec::new();
    let mut properties = native.map_or_else(BasicProperties::default, |native| kept(native, &mut dropped));
    let mut table = FieldTable::default();
    let known = native.and_then(|native| native.headers().as_ref());
    for (name, value) in headers.iter() {
        if name.len() > SHORT {
            return Err(PublishError::refused(format!(
                "the name of a header has {} bytes: AMQP carries {SHORT} (`{}…`)",
                name.len(),
                name.chars().take(40).collect::<String>()
            )));
        }
        if ROUTES.contains(&name) {
            dropped.push(name.to_owned());
            continue;
        }
        if name == DELIVERY_COUNT || table.contains_key(name) {
            continue;
        }
        let original = known.filter(|_| !outgoing.changes().contains(name));
        if let Some(value) = original.and_then(|table| table.inner().get(name)) {
            table.insert(name.into(), value.clone());
        } else if let Some(set) = as_property(name, value.map(|value| &value[..]), original.is_some()) {
            properties = set(properties);
        } else {
            table.insert(name.into(), all(&headers, name));
        }
    }
    let message = outgoing.message();
    if let Some(key) = message.key()
        && !table.contains_key(wire::MESSAGE_KEY)
    {
        table.insert(wire::MESSAGE_KEY.into(), bytes(key));
    }
    let id = headers.get(wire::MESSAGE_ID).or(message.id());
    if let Some(id) = id.and_then(|id| short(id))
        && (properties.message_id().is_none() || outgoing.changes().contains(wire::MESSAGE_ID))
    {
        properties = properties.with_message_id(id);
    }
    if properties.timestamp().is_none()
        && let Some(at) = message.timestamp()
        && let Ok(since) = at.duration_since(std::time::SystemTime::UNIX_EPOCH)
    {
        properties = properties.with_timestamp(since.as_secs());
    }
    dropped.dedup();
    if !dropped.is_empty() {
        let dropped = dropped.join(", ");
        if outgoing.changes().contains(wire::DEAD_LETTER_REASON) {
            table.insert(wire::DEAD_LETTER_DROPPED.into(), bytes(dropped.as_bytes()));
        } else if native.is_none() {
            return Err(PublishError::refused(format!(
                "the header {dropped} would route the message to further queues: publish it to each of them"
            )));
        }
    }
    Ok(properties.with_headers(table).with_delivery_mode(PERSISTENT))
}

/// The properties of the original that may stay.
fn kept(native: &BasicProperties, dropped: &mut Vec<String>) -> BasicProperties {
    let mut properties = native.clone();
    if native.expiration().is_some() || native.user_id().is_some() {
        properties = BasicProperties::default();
        for (name, gone) in [("expiration", native.expiration()), ("user_id", native.user_id())] {
            dropped.extend(gone.as_ref().map(|_| name.to_owned()));
        }
        let p = native;
        let text = |text: &Option<ShortString>| text.clone();
        if let Some(value) = text(p.content_type()) {
            properties = properties.with_content_type(value);
        }
        if let Some(value) = text(p.content_encoding()) {
            properties = properties.with_content_encoding(value);
        }
        if let Some(value) = *p.priority() {
            properties = properties.with_priority(value);
        }
        if let Some(value) = text(p.correlation_id()) {
            properties = properties.with_correlation_id(value);
        }
        if let Some(value) = text(p.reply_to()) {
            properties = properties.with_reply_to(value);
        }
        if let Some(value) = text(p.message_id()) {
            properties = properties.with_message_id(value);
        }
        if let Some(value) = *p.timestamp() {
            properties = properties.with_timestamp(value);
        }
        if let Some(value) = text(p.kind()) {
            properties = properties.with_type(value);
        }
        if let Some(value) = text(p.app_id()) {
            properties = properties.with_app_id(value);
        }
    }
    properties
}

type Set = Box<dyn FnOnce(BasicProperties) -> BasicProperties>;

/// Headers that are shown for a property go back into it. One that came with the message is there already.
fn as_property(name: &str, value: Option<&[u8]>, is_original: bool) -> Option<Set> {
    let text = short(value?)?;
    match name {
        CORRELATION_ID | CONTENT_TYPE if is_original => Some(Box::new(|properties| properties)),
        CORRELATION_ID => Some(Box::new(|properties| properties.with_correlation_id(text))),
        CONTENT_TYPE => Some(Box::new(|properties| properties.with_content_type(text))),
        _ => None,
    }
}

/// A table has each name once: several values become an array.
fn all(headers: &Headers, name: &str) -> AMQPValue {
    let mut values: Vec<AMQPValue> =
        headers.get_all(name).map(|value| value.map_or(AMQPValue::Void, |value| bytes(value))).collect();
    match values.pop() {
        Some(only) if values.is_empty() => only,
        last => {
            values.extend(last);
            AMQPValue::FieldArray(FieldArray::from(values))
        }
    }
}

fn bytes(value: &[u8]) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value.to_vec()))
}

fn short(value: &[u8]) -> Option<ShortString> {
    ShortString::try_new(std::str::from_utf8(value).ok()?).ok()
}
