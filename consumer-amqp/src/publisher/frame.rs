//! How large the frame is that carries a message's properties and headers. Only the payload is spread over several: over
//! one that is too large, RabbitMQ closes the connection, and with it all that is on its way.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// Type, channel, size and end of a frame; class, weight, size of the payload and flags.
const AROUND: usize = 8 + 14;

/// In bytes (AMQP 0-9-1, sections 2.3.5 and 4.2.6).
pub(super) fn of(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    let numbers = usize::from(properties.delivery_mode().is_some())
        + usize::from(properties.priority().is_some())
        + 8 * usize::from(properties.timestamp().is_some());
    AROUND + texts + numbers + properties.headers().as_ref().map_or(0, table)
}

fn table(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, item)| 1 + name.as_str().len() + value(item)).sum::<usize>()
}

/// With the byte that says of which type it is.
fn value(item: &AMQPValue) -> usize {
    1 + match item {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(items) => 4 + items.as_slice().iter().map(value).sum::<usize>(),
        AMQPValue::FieldTable(inner) => table(inner),
    }
}
