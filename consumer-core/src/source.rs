//! Where deliveries come from.

use std::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use crate::{BoxError, Message, runtime::Ordering};

/// Names a delivery for settling. Only the runtime holds tags; layers never see one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The assignment of a partition or the generation of a channel. A scope that has ended never comes back.
    pub scope: u64,
    /// The delivery within the scope: an offset, or a delivery tag.
    pub seq: u64,
}

/// One attempt of a source to hand over a message.
#[derive(Debug)]
pub struct Delivery {
    /// Names it for settling.
    pub tag: Tag,
    /// The message.
    pub message: Message,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the broker may forget it.
    Ack,
    /// Not done: to be delivered again. On a log the position is left uncommitted.
    Nack,
    /// Not done and not to be delivered again: only by an explicit, counted policy.
    Reject,
}

/// What a source tells the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// One or more deliveries were pushed to `out`.
    Delivered,
    /// Deliveries can come now: the source is connected and has its assignment (of no partitions, perhaps).
    Connected,
    /// The connection is gone; the source comes back by itself. Until [`Event::Connected`], no idle time runs.
    Disconnected,
    /// The scope ends: its partition was revoked or its channel is gone. The runtime asks what waits in it to stop,
    /// settles what finishes within `within` and drops the rest, then calls [`Source::release`].
    Closing {
        /// The scope that ends.
        scope: u64,
        /// How long what runs may still finish: zero where another owner is to go on at once, and as long as it takes
        /// (`Duration::MAX`) where only the connection is gone. Then the effect that has begun is completed in the
        /// store, and the message that comes again is recognised as a duplicate.
        within: Duration,
    },
    /// Earlier acks and rejections did not reach the broker: their messages may be delivered again.
    ///
    /// What may have reached it counts as settled here; a [flush](Source::poll_flush) tells of that too. What is found out
    /// while the source closes is in the log alone, since no events are asked for any more.
    Unsettled {
        /// The scope they were delivered in.
        scope: u64,
        /// How many they are.
        messages: u64,
    },
    /// The source is exhausted: no delivery follows.
    End,
}

/// What a run asks of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Demand {
    /// How many deliveries are held at once.
    pub max_in_flight: usize,
    /// Which deliveries run one after another.
    pub ordering: Ordering,
}

impl Demand {
    /// Up to `max_in_flight` deliveries, in no order.
    pub fn new(max_in_flight: usize) -> Self {
        Self { max_in_flight, ordering: Ordering::None }
    }

    /// With an order.
    #[must_use]
    pub fn ordered(mut self, ordering: Ordering) -> Self {
        self.ordering = ordering;
        self
    }
}

/// Where deliveries come from. The runtime owns it by value and polls it from one task.
///
/// # What an implementation promises
/// - Nothing is pushed to `out` beyond `room`; with `room == 0` control events are still reported, so that a full
///   consumer learns of a revoked partition.
/// - What was delivered and not acked is delivered again, to this or to another process, after a nack, a crash, a
///   lost connection or [`poll_close`](Self::poll_close).
/// - A settlement for a scope that has ended changes nothing at the broker.
/// - Within a partition (or queue), deliveries come in the order of the log.
pub trait Source: Send + 'static {
    /// Told once, before the first poll, what the run asks for.
    ///
    /// # Errors
    /// When the source cannot give it, such as an order where several consumers share a queue.
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        let _ = demand;
        Ok(())
    }

    /// Pushes at most `room` deliveries to `out`, or reports another event.
    ///
    /// # Errors
    /// Only for what the source cannot overcome by itself, such as a missing topic or a refused password. Outages are
    /// waited out.
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>>;

    /// Enqueues the settlement; never blocks. A stale tag is ignored.
    fn settle(&mut self, tag: Tag, how: Settlement);

    /// Says that nothing of this scope runs any more.
    fn release(&mut self, scope: u64);

    /// Ready when every settlement that was enqueued before this call is with the broker (a commit is answered, an ack is
    /// taken). On a log, a message that is settled behind one that is not cannot be committed: it is not waited for.
    ///
    /// # Errors
    /// When the broker cannot be told, and when something that was acked or rejected was lost, since its scope ended before
    /// the broker had it: either may be delivered again. A loss is told once, by the first answer after it, whether the flush
    /// was asked for before or after. What is settled in a scope that was [released](Self::release) is ignored, and no loss;
    /// neither is what was settled behind one that is not, on a log.
    ///
    /// # Cancel safety
    /// A flush that is not polled until it is ready loses nothing. The next call goes on with it, unless something was
    /// settled meanwhile: then it begins anew. A source may take a flush that has begun for the end of the work: until it is
    /// answered, a partition may go without waiting for what still runs.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>>;

    /// Leaves the broker after a flush. After it, nothing is delivered.
    ///
    /// # Errors
    /// When the broker cannot be told of everything that is settled and not lost yet. What was lost before may be left to
    /// [`poll_flush`](Self::poll_flush).
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>>;

    /// How many messages wait at the broker behind what was delivered, if the source knows.
    fn lag(&self) -> Option<u64> {
        None
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        (**self).configure(demand)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        (**self).poll_event(cx, room, out)
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        (**self).settle(tag, how);
    }

    fn release(&mut self, scope: u64) {
        (**self).release(scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        (**self).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        (**self).poll_close(cx)
    }

    fn lag(&self) -> Option<u64> {
        (**self).lag()
    }
}

/// A source of any kind, for choosing one at run time (by URL).
pub type BoxSource = Box<dyn Source>;

/// A source that cannot go on.
pub struct SourceError {
    message: String,
    source: Option<BoxError>,
}

impl SourceError {
    /// An error in words: what was being done, at which broker and topic, and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceError").field("message", &self.message).field("source", &self.source).finish()
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SourceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}
