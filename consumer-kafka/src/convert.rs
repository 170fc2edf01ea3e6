//! From the driver's message to ours.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use consumer_core::{Defect, Headers, Message, Origin};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};

/// What a message costs beside its bytes, roughly.
const OVERHEAD: usize = 256;

/// The message and about how much memory it takes.
pub(crate) fn message(from: &BorrowedMessage<'_>, topic: &Arc<str>) -> (Message, usize) {
    let mut bytes = OVERHEAD;
    let mut copy = |slice: &[u8]| {
        bytes += slice.len();
        Bytes::copy_from_slice(slice)
    };
    let mut builder = Message::builder().origin(Origin::Log {
        system: "kafka",
        topic: topic.clone(),
        partition: u32::try_from(from.partition()).unwrap_or_default(),
        offset: u64::try_from(from.offset()).unwrap_or_default(),
    });
    if let Some(payload) = from.payload() {
        builder = builder.payload(copy(payload));
    }
    if let Some(key) = from.key() {
        builder = builder.key(copy(key));
    }
    if let Some(millis) = from.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()) {
        builder = builder.timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    }
    if let Some(headers) = from.headers() {
        let (headers, unreadable) = read_headers(headers, &mut copy);
        builder = builder.headers(headers);
        if !unreadable.is_empty() {
            tracing::warn!(
                topic = &**topic,
                partition = from.partition(),
                offset = from.offset(),
                "a header name is not UTF-8: the message counts as undecodable"
            );
            builder = builder.defect(Defect::new("a header name is not UTF-8", unreadable));
        }
    }
    (builder.build(), bytes)
}

/// The headers, and in words those whose name the driver cannot read.
///
/// The driver panics on a name that is not UTF-8 and offers no other way to it, so the panic is caught (its message
/// still goes through the panic hook). The name itself stays unknown; the place of the header tells which one it was.
pub(crate) fn read_headers(
    from: &BorrowedHeaders,
    copy: &mut impl FnMut(&[u8]) -> Bytes,
) -> (Headers, Vec<String>) {
    let count = from.count();
    let mut headers = Headers::with_capacity(count);
    let mut unreadable = Vec::new();
    for index in 0..count {
        match catch_unwind(AssertUnwindSafe(|| from.try_get(index))) {
            Ok(Some(header)) => match header.value {
                Some(value) => headers.append(name(header.key), copy(value)),
                None => headers.append_null(name(header.key)),
            },
            Ok(None) => break,
            Err(_) => unreadable.push(format!("header {} of {count}, whose name is not UTF-8", index + 1)),
        }
    }
    (headers, unreadable)
}

/// The names that nearly every message has cost no allocation.
pub(crate) fn name(name: &str) -> consumer_core::HeaderName {
    use consumer_core::message::wire;
    for known in [wire::MESSAGE_ID, wire::TRACEPARENT, wire::TRACESTATE] {
        if name == known {
            return known.into();
        }
    }
    name.to_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::{Header, OwnedHeaders};

    #[test]
    fn order_repetition_null_and_empty_survive() {
        let from = OwnedHeaders::new()
            .insert(Header { key: "b", value: Some("1") })
            .insert(Header::<&str> { key: "a", value: None })
            .insert(Header { key: "b", value: Some("") });
        let (headers, unreadable) = read_headers(from.as_borrowed(), &mut Bytes::copy_from_slice);
        let all: Vec<_> = headers.iter().map(|(name, value)| (name, value.map(|v| &v[..]))).collect();
        assert_eq!(all, [("b", Some(&b"1"[..])), ("a", None), ("b", Some(&b""[..]))]);
        assert!(unreadable.is_empty());
    }
}
