//! What a handler gets: payload, headers, key and identity of one message.

mod copies;
mod extensions;
mod headers;
mod origin;
pub mod wire;

use std::{any::Any, fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use headers::{HeaderName, Headers};
pub use origin::Origin;

use crate::{dedup::ClaimHandle, scope::Scope};
use extensions::Extensions;

/// One message as a layer or a handler sees it.
///
/// Cloning costs reference counts only. The broker's handle for settling is not part of it: only the runtime acks.
/// [`attempt`](Self::attempt), [`epoch`](Self::epoch) and extensions belong to the clone, so the layer that knows
/// them sets them for what is inside it.
///
/// ```
/// use consumer_core::Message;
///
/// let message = Message::builder().payload("{}").key("o-17").id("4711").build();
/// assert_eq!(message.id().map(|id| &id[..]), Some(&b"4711"[..]));
/// assert_eq!(message.headers().get_str("message-id"), Some("4711"));
/// assert!(!message.is_tombstone());
/// ```
#[derive(Clone)]
pub struct Message {
    parts: Arc<Parts>,
    /// Goes before the one in the parts.
    scope: Option<Arc<Scope>>,
    claim: Option<ClaimHandle>,
    extensions: Extensions,
    attempt: u32,
    epoch: u64,
}

struct Parts {
    payload: Option<Bytes>,
    key: Option<Bytes>,
    id: Option<Bytes>,
    headers: Headers,
    timestamp: Option<SystemTime>,
    origin: Origin,
    defect: Option<Defect>,
    native: Option<Arc<dyn Any + Send + Sync>>,
    hold_until: Option<Instant>,
    /// Here as long as no clone existed when it was set: then clones share it without a count of its own.
    scope: Option<Arc<Scope>>,
}

static NO_BYTES: Bytes = Bytes::new();

impl Message {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self::builder().payload(payload).build()
    }

    /// Starts a message. Without a payload it becomes a tombstone.
    pub fn builder() -> MessageBuilder {
        MessageBuilder::default()
    }

    /// The payload; empty for a tombstone.
    pub fn payload(&self) -> &Bytes {
        self.parts.payload.as_ref().unwrap_or(&NO_BYTES)
    }

    /// Whether the payload is null, which a log with compaction takes as "deleted", rather than empty.
    pub fn is_tombstone(&self) -> bool {
        self.parts.payload.is_none()
    }

    /// The message key, which groups messages for order.
    pub fn key(&self) -> Option<&Bytes> {
        self.parts.key.as_ref()
    }

    /// The message id: the first non-empty `message-id` header, else the id property of a broker that has one.
    pub fn id(&self) -> Option<&Bytes> {
        self.parts.id.as_ref()
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.parts.headers
    }

    /// When the message was published, as the broker or the publisher stamped it.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.parts.timestamp
    }

    /// Where the message came from.
    pub fn origin(&self) -> &Origin {
        &self.parts.origin
    }

    /// What the source could not represent of the message. Such a message is undecodable: no handler sees it.
    pub fn defect(&self) -> Option<&Defect> {
        self.parts.defect.as_ref()
    }

    /// The escape hatch: a value that the adapter attached, under the type its documentation names.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.parts.native.as_deref().and_then(|native| native.downcast_ref())
    }

    /// How long the message may be held without executing, where the broker bounds that. Layers that wait heed it: then
    /// they hand the message back.
    pub fn hold_until(&self) -> Option<Instant> {
        self.parts.hold_until
    }

    /// The number of this attempt, from 1. It counts failed calls over all processes when a dedup layer is in the
    /// stack, else those of this presentation.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The epoch of the claim under which the message runs: a fencing token that grows with every claim of its key.
    /// 0 without a dedup layer.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Cancelled when the message should be handed back: shutdown, or its partition is taken away.
    ///
    /// It is a request to stop waiting, not a failure. Layers that wait heed it; a handler may, and may then return any
    /// error: from now on a *transient* failure of this message only hands it back, counts no attempt and is never
    /// dead-lettered. A permanent one is taken at its word. What a handler spawns should watch a child of this token.
    pub fn cancellation(&self) -> &CancellationToken {
        match self.scope() {
            Some(scope) => scope.token(),
            None => crate::scope::never(),
        }
    }

    /// A value that a layer outside attached to this delivery.
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// Attaches a value for what is inside.
    #[must_use]
    pub fn with_extension<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions = self.extensions.with(value);
        self
    }

    /// Sets the attempt, from 1.
    #[must_use]
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt.max(1);
        self
    }

    /// Sets the epoch.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Replaces the cancellation for what is inside; the new token should be a child of the old one.
    #[must_use]
    pub fn with_cancellation(mut self, token: CancellationToken) -> Self {
        self.scope = Some(Arc::new(match self.scope() {
            Some(scope) => scope.with_token(token),
            None => Scope::detached(token),
        }));
        self
    }

    pub(crate) fn with_scope(mut self, scope: Arc<Scope>) -> Self {
        match Arc::get_mut(&mut self.parts) {
            Some(parts) => {
                parts.scope = Some(scope);
                self.scope = None;
            }
            None => self.scope = Some(scope),
        }
        self
    }

    pub(crate) fn scope(&self) -> Option<&Arc<Scope>> {
        self.scope.as_ref().or(self.parts.scope.as_ref())
    }

    pub(crate) fn with_claim(mut self, claim: Option<ClaimHandle>) -> Self {
        self.claim = claim;
        self
    }

    pub(crate) fn claim(&self) -> Option<&ClaimHandle> {
        self.claim.as_ref()
    }
}

/// Shows what identifies the message and the sizes of the rest: payloads and header values stay out of logs.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &Option<Bytes>| bytes.as_deref().map(|b| String::from_utf8_lossy(b).into_owned());
        f.debug_struct("Message")
            .field("id", &text(&self.parts.id))
            .field("key", &text(&self.parts.key))
            .field("origin", &self.parts.origin)
            .field("payload_len", &self.parts.payload.as_ref().map(Bytes::len))
            .field("headers", &self.parts.headers)
            .field("attempt", &self.attempt)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// What a source could not represent of a message, such as a header name that is not text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    reason: String,
    dropped: Vec<String>,
}

impl Defect {
    /// A defect with its reason and the parts that were left out for it, in words (`header "\xff"`).
    pub fn new(reason: impl Into<String>, dropped: Vec<String>) -> Self {
        Self { reason: reason.into(), dropped }
    }

    /// What is wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What was left out.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if self.dropped.is_empty() { Ok(()) } else { write!(f, " (left out: {})", self.dropped.join(", ")) }
    }
}

/// Builds a [`Message`].
#[derive(Debug, Default)]
#[must_use]
pub struct MessageBuilder {
    payload: Option<Bytes>,
    key: Option<Bytes>,
    fallback_id: Option<Bytes>,
    headers: Headers,
    timestamp: Option<SystemTime>,
    origin: Option<Origin>,
    defect: Option<Defect>,
    native: Option<Arc<dyn Any + Send + Sync>>,
    hold_until: Option<Instant>,
}

impl MessageBuilder {
    /// Sets the payload.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// Sets the message key.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the message id, as the header `message-id`.
    pub fn id(mut self, id: impl Into<Bytes>) -> Self {
        self.headers.insert(wire::MESSAGE_ID, id.into());
        self
    }

    /// For adapters: the id of a broker's own property, used when there is no `message-id` header.
    pub fn fallback_id(mut self, id: impl Into<Bytes>) -> Self {
        self.fallback_id = Some(id.into());
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<HeaderName>, value: impl Into<Bytes>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Replaces all headers.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the time of publishing.
    pub fn timestamp(mut self, at: SystemTime) -> Self {
        self.timestamp = Some(at);
        self
    }

    /// For adapters: sets where the message came from.
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// For adapters: sets how long the message may be held without executing. What waits longer is handed back, which
    /// lets later messages of its lane pass: a source that was asked for an order sets none.
    pub fn hold_until(mut self, until: Instant) -> Self {
        self.hold_until = Some(until);
        self
    }

    /// For adapters: marks the message as undecodable.
    pub fn defect(mut self, defect: Defect) -> Self {
        self.defect = Some(defect);
        self
    }

    /// For adapters: attaches a value for [`Message::native`].
    pub fn native<T: Send + Sync + 'static>(mut self, native: Arc<T>) -> Self {
        self.native = Some(native);
        self
    }

    /// The message.
    pub fn build(self) -> Message {
        let header_id = self.headers.get_all(wire::MESSAGE_ID).flatten().find(|id| !id.is_empty()).cloned();
        let id = header_id.or(self.fallback_id.filter(|id| !id.is_empty()));
        let parts = Parts {
            payload: self.payload,
            key: self.key,
            id,
            headers: self.headers,
            timestamp: self.timestamp,
            origin: self.origin.unwrap_or(Origin::Local),
            defect: self.defect,
            native: self.native,
            hold_until: self.hold_until,
            scope: None,
        };
        Message {
            parts: Arc::new(parts),
            scope: None,
            claim: None,
            extensions: Extensions::default(),
            attempt: 1,
            epoch: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_id_is_no_id_and_the_header_goes_before_the_property() {
        let with = |header: Option<&'static str>| {
            let mut builder = Message::builder().fallback_id("property");
            if let Some(id) = header {
                builder = builder.id(id);
            }
            builder.build().id().cloned()
        };
        assert_eq!(with(Some("header")), Some(Bytes::from("header")));
        assert_eq!(with(Some("")), Some(Bytes::from("property")));
        assert_eq!(with(None), Some(Bytes::from("property")));
        assert_eq!(Message::builder().id("").build().id(), None);
    }

    #[test]
    fn debug_shows_no_payload_and_no_header_value() {
        let text = format!("{:?}", Message::builder().payload("card 4242").header("token", "s3cret").build());
        assert!(!text.contains("4242") && !text.contains("s3cret"), "{text}");
    }

    #[test]
    fn extensions_belong_to_the_clone() {
        let outer = Message::new("x");
        let inner = outer.clone().with_extension(7_u32).with_extension("tx");
        assert_eq!(inner.extension::<u32>(), Some(&7));
        assert_eq!(inner.extension::<&str>(), Some(&"tx"));
        assert_eq!(outer.extension::<u32>(), None);
    }

    #[test]
    fn a_tombstone_is_not_an_empty_payload() {
        assert!(Message::builder().build().is_tombstone());
        assert!(!Message::new("").is_tombstone());
        assert!(Message::builder().build().payload().is_empty());
    }
}
