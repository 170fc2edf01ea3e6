//! Publishing: one confirmed message at a time, many in flight.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{BoxError, Headers, Message, message::wire};

/// A message on its way to a topic or queue.
#[derive(Debug, Clone)]
#[must_use]
pub struct Outgoing {
    target: Arc<str>,
    message: Message,
    set: Headers,
    remove_prefixes: Vec<&'static str>,
    not_before: Option<SystemTime>,
    delay: Option<Duration>,
}

impl Outgoing {
    /// A message to publish to `target`. Without an id it is given one (UUID v7), so that consumers can deduplicate.
    pub fn new(target: impl Into<Arc<str>>, message: Message) -> Self {
        let mut outgoing = Self::copy(target, message);
        if outgoing.message.id().is_none() {
            outgoing = outgoing.set(wire::MESSAGE_ID, uuid::Uuid::now_v7().to_string());
        }
        outgoing
    }

    /// A message that was delivered before and is carried on as it is: no id is added.
    pub fn copy(target: impl Into<Arc<str>>, message: Message) -> Self {
        Self {
            target: target.into(),
            message,
            set: Headers::new(),
            remove_prefixes: Vec::new(),
            not_before: None,
            delay: None,
        }
    }

    pub(crate) fn retarget(mut self, target: Arc<str>) -> Self {
        self.target = target;
        self
    }

    /// Sets a header, replacing those of its name.
    pub fn set(mut self, name: impl Into<crate::HeaderName>, value: impl Into<bytes::Bytes>) -> Self {
        self.set.insert(name, value);
        self
    }

    /// Sets several headers at once, each replacing those of its name.
    pub fn set_all(mut self, headers: &Headers) -> Self {
        self.set.replace_with(headers);
        self
    }

    /// Takes back a header that was set.
    pub fn unset(mut self, name: &str) -> Self {
        self.set.remove(name);
        self
    }

    /// Leaves out the headers of the message whose names start with `prefix`; those that were set stay.
    pub fn remove_prefix(mut self, prefix: &'static str) -> Self {
        self.remove_prefixes.push(prefix);
        self
    }

    /// Asks for delivery not before this time, of publishers that can.
    pub fn not_before(mut self, at: SystemTime) -> Self {
        self.not_before = Some(at);
        self
    }

    /// Asks for delivery after this time, of publishers that hold messages for delays they know, as queues with a time to
    /// live do. Those that can neither do this nor [`not_before`](Self::not_before) refuse the message.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The delay that was asked for.
    pub fn delay_by(&self) -> Option<Duration> {
        self.delay
    }

    /// The topic or queue.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The message; its headers are without what this publishing changes, for which see [`headers`](Self::headers).
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The time before which it must not be delivered.
    pub fn due(&self) -> Option<SystemTime> {
        self.not_before
    }

    /// The headers that this publishing sets.
    pub fn changes(&self) -> &Headers {
        &self.set
    }

    /// The headers to publish: those of the message, less the removed prefixes, with those that were set.
    pub fn headers(&self) -> Headers {
        let mut headers = self.message.headers().clone();
        for prefix in &self.remove_prefixes {
            headers.remove_prefix(prefix);
        }
        headers.replace_with(&self.set);
        headers
    }
}

/// Sends messages to a broker.
pub trait Publisher: Clone + Send + Sync + 'static {
    /// Publishes; `Ok` means the broker has confirmed that it keeps the message and that it was routed.
    ///
    /// The message is enqueued by the call, not by the first poll.
    ///
    /// # Errors
    /// See [`PublishError`]. After an error the message may have been stored all the same: publishing again with the
    /// same id is safe for consumers that deduplicate.
    ///
    /// # Cancel safety
    /// Dropping the future loses the answer, not the message.
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<Self>;
}

/// A publish that was not confirmed.
pub struct PublishError {
    kind: PublishErrorKind,
    message: String,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PublishErrorKind {
    Unavailable,
    Unroutable,
    TooLarge,
    Refused,
}

impl PublishError {
    fn with(kind: PublishErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The broker is away or did not answer in time.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::with(PublishErrorKind::Unavailable, message)
    }

    /// The target does not exist or nothing is bound to it.
    pub fn unroutable(message: impl Into<String>) -> Self {
        Self::with(PublishErrorKind::Unroutable, message)
    }

    /// The broker takes no message of this size.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::with(PublishErrorKind::TooLarge, message)
    }

    /// The broker refuses the message for another reason, such as missing rights.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::with(PublishErrorKind::Refused, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same publish may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        self.kind == PublishErrorKind::Unavailable
    }

    /// Whether the target does not exist.
    pub fn is_unroutable(&self) -> bool {
        self.kind == PublishErrorKind::Unroutable
    }

    /// Whether the message is larger than the broker takes.
    pub fn is_too_large(&self) -> bool {
        self.kind == PublishErrorKind::TooLarge
    }
}

impl fmt::Debug for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

trait ErasedPublisher: Send + Sync {
    fn publish(&self, outgoing: Outgoing) -> BoxFuture<Result<(), PublishError>>;
}

impl<P: Publisher> ErasedPublisher for P {
    fn publish(&self, outgoing: Outgoing) -> BoxFuture<Result<(), PublishError>> {
        Box::pin(Publisher::publish(self, outgoing))
    }
}

/// A publisher of any kind, for choosing one at run time (by URL). One allocation more for each message.
#[derive(Clone)]
pub struct DynPublisher(Arc<dyn ErasedPublisher>);

impl DynPublisher {
    /// Erases the type of `publisher`.
    pub fn new(publisher: impl Publisher) -> Self {
        Self(Arc::new(publisher))
    }
}

impl fmt::Debug for DynPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynPublisher")
    }
}

impl Publisher for DynPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        self.0.publish(outgoing)
    }
}
