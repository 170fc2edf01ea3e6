//! The source: the runtime's side. A thread of its own (see `thread`) talks to the driver.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use consumer_core::{Delivery, Event, Settlement, Source, SourceError, Tag};
use rdkafka::ClientConfig;

use crate::{
    KafkaPublisher, KafkaSourceBuilder, builder::Options, config::Connection, error::KafkaError,
    intake::Intake, shared::Shared, thread,
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
    intake: Intake,
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
        let shared: Arc<Shared> = Arc::default();
        let intake = Intake::new(shared.clone());
        Self { connection, options, config, shared, started: false, intake }
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
}

impl Source for KafkaSource {
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        self.start()?;
        self.intake.poll_event(cx, room, out)
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        self.intake.settle(tag, how);
    }

    fn release(&mut self, scope: u64) {
        self.intake.release(scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if !self.started {
            return Poll::Ready(Ok(()));
        }
        self.intake.poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if !self.started {
            self.started = true;
            self.shared.closed(Ok(()));
        }
        self.intake.poll_close(cx)
    }

    fn lag(&self) -> Option<u64> {
        self.intake.lag()
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
            .field("partitions", &self.intake.partitions())
            .field("buffered", &self.shared.buffered())
            .finish_non_exhaustive()
    }
}
