//! The source: the runtime's side. It owns the trackers; a thread of its own (see `thread`) talks to the driver.

use std::{
    collections::{HashMap, VecDeque},
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use consumer_core::{Delivery, Event, Settlement, Source, SourceError, Tag};
use rdkafka::ClientConfig;

use crate::{
    KafkaPublisher, KafkaSourceBuilder,
    builder::Options,
    config::Connection,
    error::KafkaError,
    partition::Partition,
    shared::{Control, Queued, Shared},
    thread,
    tracker::Tracker,
};

/// Consumes topics as a member of a group. Made by [`KafkaSource::builder`] or [`KafkaSource::from_url`].
///
/// It joins the group at the first poll, in a thread of its own that keeps polling whatever the consumer does, so a
/// slow handler is never taken for a dead member. Memory is bounded: about 16 MiB prefetched by the driver
/// (`queued.max.messages.kbytes`) and 8 MiB in the buffer towards the runtime, whatever the backlog.
///
/// What is committed is the lowest delivered offset that is not acked. When a partition is revoked, what runs in it is
/// given [`drain`](KafkaSourceBuilder::drain) to finish and then the offset is committed before the partition goes;
/// for one that was lost, nothing is committed. A nacked message is delivered again by this source while it has the
/// partition.
///
/// A header whose name is not UTF-8 cannot be read through the driver: it is left out and the message has a
/// [`defect`](consumer_core::Message::defect), which makes it undecodable. The driver panics over such a name; that is
/// caught, so a program built with `panic = "abort"` would end there.
///
/// Dropped without [`poll_close`](Source::poll_close), it commits what was acked and leaves the group in the
/// background.
pub struct KafkaSource {
    connection: Connection,
    pub(crate) options: Arc<Options>,
    config: ClientConfig,
    shared: Arc<Shared>,
    started: bool,
    partitions: HashMap<u64, Tracked, foldhash::fast::RandomState>,
    /// Taken from the shared state, in order.
    controls: VecDeque<Control>,
    queue: VecDeque<Queued>,
    /// Nacked, to be delivered again before anything else.
    returned: VecDeque<Tag>,
    flush: Option<u64>,
}

#[derive(Debug)]
struct Tracked {
    partition: Arc<Partition>,
    tracker: Tracker,
    closing: bool,
}

impl KafkaSource {
    /// Starts a source at these brokers: `host:port[,host:port]`.
    pub fn builder(brokers: impl AsRef<str>) -> KafkaSourceBuilder {
        KafkaSourceBuilder::brokers(brokers.as_ref())
    }

    /// Starts a source from `kafka://host:port[,host:port]` or `kafka+tls://user:password@host:port`; with a user but
    /// without TLS it is `kafka://user:password@host:port`. Query parameters are librdkafka properties, as
    /// `?sasl.mechanism=SCRAM-SHA-256` (the default is `PLAIN`). A URL that is wrong is reported by
    /// [`build`](KafkaSourceBuilder::build).
    pub fn from_url(url: impl AsRef<str>) -> KafkaSourceBuilder {
        KafkaSourceBuilder::url(url.as_ref())
    }

    pub(crate) fn new(connection: Connection, options: Arc<Options>, config: ClientConfig) -> Self {
        Self {
            connection,
            options,
            config,
            shared: Arc::default(),
            started: false,
            partitions: HashMap::default(),
            controls: VecDeque::new(),
            queue: VecDeque::new(),
            returned: VecDeque::new(),
            flush: None,
        }
    }

    /// The scope to deduplicate under: the group, or `<group>@<name>` in a replay.
    pub fn scope(&self) -> String {
        self.options.scope()
    }

    /// The topics it consumes, without the retry topics of its [`delays`](KafkaSourceBuilder::delays).
    pub fn topics(&self) -> &[String] {
        &self.options.topics
    }

    /// A publisher with the same brokers and security. With [`delays`](KafkaSourceBuilder::delays) it can publish for later:
    /// a message that came from one of the source's topics, for one of its delays.
    ///
    /// # Errors
    /// A [`KafkaError`] with `is_config()` when the driver refuses the configuration.
    pub fn publisher(&self) -> Result<KafkaPublisher, KafkaError> {
        KafkaPublisher::with(self.connection.shared()).of(self.options.clone()).build()
    }

    /// An administration client with the same brokers and security.
    ///
    /// # Errors
    /// As [`publisher`](Self::publisher).
    pub fn admin(&self) -> Result<crate::KafkaAdmin, KafkaError> {
        crate::KafkaAdmin::with(self.connection.shared())
    }

    fn start(&mut self) -> Result<(), SourceError> {
        if self.started {
            return Ok(());
        }
        let handle = thread::spawn(
            self.config.clone(),
            self.connection.shared(),
            self.options.clone(),
            self.shared.clone(),
        )
        .map_err(|error| {
            SourceError::new("the thread of the kafka source cannot be started").with_source(error)
        })?;
        self.shared.set_thread(handle.thread().clone());
        self.started = true;
        Ok(())
    }

    /// What the runtime is to be told next, besides deliveries.
    fn next_event(&mut self) -> Option<Event> {
        while let Some(control) = self.controls.pop_front() {
            match control {
                Control::Assigned(partition) => {
                    let tracked = Tracked { partition, tracker: Tracker::default(), closing: false };
                    self.partitions.insert(tracked.partition.scope, tracked);
                }
                Control::Connected => return Some(Event::Connected),
                Control::Disconnected => return Some(Event::Disconnected),
                Control::Closing { partition, within } => {
                    let scope = partition.scope;
                    self.forget_queued(scope);
                    if let Some(tracked) = self.partitions.get_mut(&scope) {
                        tracked.closing = true;
                        tracked.release_if_idle(&self.shared);
                    }
                    return Some(Event::Closing { scope, within });
                }
            }
        }
        None
    }

    /// Drops what was not delivered of a scope that ends.
    fn forget_queued(&mut self, scope: u64) {
        let (mut messages, mut bytes) = (0, 0);
        self.queue.retain(|queued| {
            let keep = queued.tag.scope != scope;
            if !keep {
                messages += 1;
                bytes += queued.bytes;
            }
            keep
        });
        self.shared.taken(messages, bytes);
        self.returned.retain(|tag| tag.scope != scope);
    }

    fn deliver(&mut self, room: usize, out: &mut Vec<Delivery>) -> bool {
        let before = out.len();
        while out.len() - before < room
            && let Some(tag) = self.returned.pop_front()
        {
            let message = self.partitions.get_mut(&tag.scope).and_then(|t| t.tracker.deliver_again(tag.seq));
            out.extend(message.map(|message| Delivery { tag, message }));
        }
        let (mut messages, mut bytes) = (0, 0);
        while out.len() - before < room
            && let Some(Queued { tag, message, bytes: size }) = self.queue.pop_front()
        {
            messages += 1;
            bytes += size;
            match self.partitions.get_mut(&tag.scope) {
                Some(tracked) if !tracked.closing => {
                    tracked.tracker.deliver(tag.seq, message.clone());
                    out.push(Delivery { tag, message });
                }
                // Taken from the driver just before its partition went.
                _ => {}
            }
        }
        self.shared.taken(messages, bytes);
        out.len() > before
    }
}

impl Tracked {
    /// Nothing runs any more: a revocation need not wait for the runtime to say so.
    fn release_if_idle(&self, shared: &Shared) {
        if self.closing && self.tracker.running() == 0 {
            self.partition.release();
            shared.wake_thread();
        }
    }
}

impl Source for KafkaSource {
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        self.start()?;
        loop {
            if let Some(event) = self.next_event() {
                return Poll::Ready(Ok(event));
            }
            if !self.shared.has_news() && self.deliver(room, out) {
                return Poll::Ready(Ok(Event::Delivered));
            }
            let mut state = self.shared.lock();
            let mut fresh = !state.controls.is_empty();
            self.controls.extend(state.controls.drain(..));
            if self.queue.is_empty() && !state.queue.is_empty() {
                // The thread goes on with our empty vector, so neither side allocates.
                let empty = mem::take(&mut self.queue).into();
                self.queue = mem::replace(&mut state.queue, empty).into();
                fresh |= room > 0;
            }
            if !fresh && let Some(failure) = state.failure() {
                return Poll::Ready(Err(SourceError::new(failure)));
            }
            if state.failure().is_none() {
                self.shared.seen(&state);
            }
            if !fresh {
                if state.closed().is_some() {
                    return Poll::Ready(Ok(Event::End));
                }
                state.register(cx);
                return Poll::Pending;
            }
        }
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        let Some(tracked) = self.partitions.get_mut(&tag.scope) else { return };
        match how {
            Settlement::Ack | Settlement::Reject => {
                if let Some(progress) = tracked.tracker.finish(tag.seq) {
                    tracked.partition.advance(progress);
                }
            }
            Settlement::Nack => {
                // In a partition that goes, it is for the next owner.
                if tracked.tracker.give_back(tag.seq) && !tracked.closing {
                    self.returned.push_back(tag);
                }
            }
        }
        tracked.release_if_idle(&self.shared);
    }

    fn release(&mut self, scope: u64) {
        if let Some(tracked) = self.partitions.remove(&scope) {
            tracked.partition.release();
            self.shared.wake_thread();
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if !self.started {
            return Poll::Ready(Ok(()));
        }
        let ticket = *self.flush.get_or_insert_with(|| self.shared.request_flush());
        let mut state = self.shared.lock();
        if let Some(outcome) = state.flushed(ticket) {
            self.flush = None;
            return Poll::Ready(outcome.map_err(SourceError::new));
        }
        state.register_flush(cx);
        Poll::Pending
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if !self.started {
            self.started = true;
            self.shared.closed(Ok(()));
        }
        self.shared.request_close();
        let mut state = self.shared.lock();
        if let Some(outcome) = state.closed() {
            return Poll::Ready(outcome.map_err(SourceError::new));
        }
        state.register_flush(cx);
        Poll::Pending
    }

    fn lag(&self) -> Option<u64> {
        // What is buffered lies behind the position, so it counts.
        let mut lag = 0;
        for tracked in self.partitions.values() {
            lag += tracked.partition.lag(tracked.tracker.position())?;
        }
        Some(lag)
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.request_close();
    }
}

impl fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSource")
            .field("connection", &self.connection)
            .field("options", &self.options)
            .field("partitions", &self.partitions.len())
            .field("buffered", &self.shared.buffered())
            .finish_non_exhaustive()
    }
}
