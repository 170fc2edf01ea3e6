//! From our message to what AMQP carries beside the payload.
//!
//! A message that came from RabbitMQ keeps its properties and the types of its headers. What would act again on the
//! copy is left out: an expiry, the user it was published by (the broker refuses another one), and the headers `CC` and
//! `BCC`, which route it to further queues. What the broker wrote of its deaths (`x-death`) stays on a dead letter only:
//! RabbitMQ 3 believes it of a publisher too, and a copy that then expires where it waits for a retry, with a target in which
//! the message has been dead before, is dropped as a cycle.

use std::time::{Duration, SystemTime};

use consumer_core::{Headers, Outgoing, PublishError, message::wire};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};

use crate::{
    dead_letters::DEATHS,
    delivery::{AmqpDelivery, CONTENT_TYPE, CORRELATION_ID, DELIVERY_COUNT},
};

const PERSISTENT: u8 = 2;
/// A difference from the delay of the queue that is worth an expiry of the message's own.
const NOTICEABLE: Duration = Duration::from_millis(50);
/// The longest text of a property or name of a header, in bytes.
const SHORT: usize = 255;
/// What all headers start with that a publishing may remove.
const PREFIXES: [&str; 3] = [wire::DEAD_LETTER_PREFIX, wire::RETRY_PREFIX, wire::REDRIVE_PREFIX];
const ROUTES: [&str; 2] = ["CC", "BCC"];
/// And what it says of the first and the last of them.
const DEATH_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// # Errors
/// When AMQP cannot carry it.
pub(crate) fn properties(outgoing: &Outgoing) -> Result<BasicProperties, PublishError> {
    let native = outgoing.message().native::<AmqpDelivery>().map(|native| &native.properties);
    let headers = outgoing.headers();
    let is_dead_letter = outgoing.changes().contains(wire::DEAD_LETTER_REASON);
    let is_past = |name: &str| name == DEATHS || DEATH_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
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
        if name == DELIVERY_COUNT || table.contains_key(name) || (is_past(name) && !is_dead_letter) {
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
    // Without a value there is no header to see.
    for (name, value) in known.into_iter().flat_map(|table| table.inner()) {
        let is_empty = matches!(value, AMQPValue::FieldArray(values) if values.as_slice().is_empty());
        let is_ours = PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        if is_empty && !is_ours && !table.contains_key(name.as_str()) && !ROUTES.contains(&name.as_str()) {
            table.insert(name.clone(), value.clone());
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
        && let Ok(since) = at.duration_since(SystemTime::UNIX_EPOCH)
    {
        properties = properties.with_timestamp(since.as_secs());
    }
    dropped.dedup();
    if !dropped.is_empty() {
        let dropped = dropped.join(", ");
        if is_dead_letter {
            let known = outgoing.changes().get_str(wire::DEAD_LETTER_DROPPED);
            let all = known.map_or(dropped.clone(), |known| format!("{known}, {dropped}"));
            table.insert(wire::DEAD_LETTER_DROPPED.into(), bytes(all.as_bytes()));
        } else if native.is_none() || ROUTES.iter().any(|route| outgoing.changes().contains(route)) {
            return Err(PublishError::refused(format!(
                "the header {dropped} would route the message to further queues: publish it to each of them"
            )));
        }
    }
    if let Some(expiration) = expiration(outgoing, SystemTime::now()) {
        properties = properties.with_expiration(expiration.to_string().into());
    }
    Ok(properties.with_headers(table).with_delivery_mode(PERSISTENT))
}

/// Milliseconds after which a message goes on that is due before its delay ends. The queue where it waits heeds that once
/// the message is the first one.
fn expiration(outgoing: &Outgoing, now: SystemTime) -> Option<u128> {
    let (delay, due) = (outgoing.delay_by()?, outgoing.due()?);
    let left = due.duration_since(now).unwrap_or_default();
    // Less is only the time it has taken to come here.
    (left + NOTICEABLE <= delay).then(|| left.as_nanos().div_ceil(1_000_000))
}

/// The properties of the original that may stay.
fn kept(native: &BasicProperties, dropped: &mut Vec<String>) -> BasicProperties {
    let mut properties = native.clone();
    if native.expiration().is_some() || native.user_id().is_some() {
        properties = BasicProperties::default();
        for (name, gone) in [("expiration", native.expiration()), ("user_id", native.user_id())] {
            dropped.extend(gone.as_ref().map(|_| name.to_owned()));
        }
        let text = |text: &Option<ShortString>| text.clone();
        if let Some(value) = text(native.content_type()) {
            properties = properties.with_content_type(value);
        }
        if let Some(value) = text(native.content_encoding()) {
            properties = properties.with_content_encoding(value);
        }
        if let Some(value) = *native.priority() {
            properties = properties.with_priority(value);
        }
        if let Some(value) = text(native.correlation_id()) {
            properties = properties.with_correlation_id(value);
        }
        if let Some(value) = text(native.reply_to()) {
            properties = properties.with_reply_to(value);
        }
        if let Some(value) = text(native.message_id()) {
            properties = properties.with_message_id(value);
        }
        if let Some(value) = *native.timestamp() {
            properties = properties.with_timestamp(value);
        }
        if let Some(value) = text(native.kind()) {
            properties = properties.with_type(value);
        }
        if let Some(value) = text(native.app_id()) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Reader;
    use consumer_core::Message;
    use lapin::message::Delivery;

    fn delivered(table: FieldTable) -> Message {
        let mut delivery = Delivery::mock(1, "ex".into(), "rk".into(), true, b"{}".to_vec());
        delivery.properties = BasicProperties::default().with_headers(table);
        Reader::new("q").message(delivery, None)
    }

    #[test]
    fn a_copy_keeps_every_type_the_empty_ones_too() {
        let mut table = FieldTable::default();
        table.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(Vec::new())));
        table.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
        table.insert("number".into(), AMQPValue::LongInt(7));
        table.insert("nothing".into(), AMQPValue::Void);
        let properties = properties(&Outgoing::copy("dead", delivered(table.clone()))).unwrap();
        assert_eq!(properties.headers().as_ref(), Some(&table));
        assert_eq!(*properties.delivery_mode(), Some(PERSISTENT));
    }

    #[test]
    fn what_a_publishing_sets_replaces_what_was_delivered() {
        let mut table = FieldTable::default();
        table.insert("number".into(), AMQPValue::LongInt(7));
        table.insert("dead-letter-list".into(), AMQPValue::FieldArray(FieldArray::from(Vec::new())));
        let outgoing = Outgoing::copy("q", delivered(table)).set("number", "8").remove_prefix("dead-letter-");
        let properties =
            properties(&outgoing.set("message-id", "id-1").set("correlation-id", "c-1")).unwrap();
        let headers = properties.headers().clone().unwrap();
        assert_eq!(headers.inner().get("number"), Some(&bytes(b"8")));
        assert!(!headers.contains_key("dead-letter-list"));
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("id-1"));
        assert_eq!(properties.correlation_id().as_ref().map(ShortString::as_str), Some("c-1"));
    }

    #[test]
    fn what_the_broker_wrote_of_deaths_stays_on_a_dead_letter_only() {
        let mut table = FieldTable::default();
        let death = AMQPValue::FieldTable(FieldTable::default());
        table.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
        for name in ["x-first-death-queue", "x-last-death-queue", "x-mine"] {
            table.insert(name.into(), bytes(b"q"));
        }
        let copy = || Outgoing::copy("q", delivered(table.clone()));
        let names = |outgoing| {
            let headers = properties(&outgoing).unwrap().headers().clone().unwrap();
            headers.inner().keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(copy()), ["x-mine"]);
        let dead = properties(&copy().set("dead-letter-reason", "permanent")).unwrap();
        assert_eq!(dead.headers().as_ref().unwrap().inner().get("x-death"), table.inner().get("x-death"));
        assert!(dead.headers().as_ref().unwrap().contains_key("x-first-death-queue"));
    }

    #[test]
    fn routes_that_are_set_are_refused_and_never_dropped_in_silence() {
        for message in [delivered(FieldTable::default()), Message::new("x")] {
            let error = properties(&Outgoing::copy("q", message).set("CC", "elsewhere")).unwrap_err();
            assert!(error.to_string().contains("CC"), "{error}");
        }
    }

    #[test]
    fn what_is_due_before_its_delay_ends_expires_then() {
        let expiration = |delay: Option<u64>, due: Option<f64>| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
            let mut outgoing = Outgoing::new("q", Message::new("x"));
            if let Some(delay) = delay {
                outgoing = outgoing.delay(Duration::from_secs(delay));
            }
            if let Some(due) = due {
                outgoing =
                    outgoing.not_before(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1000.0 + due));
            }
            super::expiration(&outgoing, now)
        };
        assert_eq!(expiration(Some(30), Some(20.0001)), Some(20_001));
        assert_eq!(expiration(Some(30), Some(-5.0)), Some(0));
        assert_eq!([29.97, 30.0, 40.0].map(|due| expiration(Some(30), Some(due))), [None; 3]);
        assert_eq!([expiration(None, Some(1.0)), expiration(Some(30), None)], [None; 2]);
    }

    #[test]
    fn an_id_that_is_no_short_text_stays_a_header() {
        let long = Message::builder().payload("x").header("message-id", "i".repeat(300)).build();
        let properties = properties(&Outgoing::new("q", long)).unwrap();
        assert_eq!(properties.message_id(), &None);
        assert!(properties.headers().as_ref().is_some_and(|table| table.contains_key("message-id")));
    }
}
