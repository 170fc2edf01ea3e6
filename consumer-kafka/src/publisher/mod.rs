//! The publisher: many messages in flight, each done when the broker has confirmed it.

mod context;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use consumer_core::{Outgoing, PublishError, Publisher};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer},
    types::RDKafkaType,
};
use tokio::sync::oneshot;

use crate::{
    builder::Options,
    config::{Connection, PUBLISHER_DEFAULTS, PUBLISHER_FIXED, refused_for_publisher, validate},
    error::KafkaError,
    retry::route::route,
    trouble::Trouble,
    url,
};
use context::{Limits, Pending, Reports};

/// How long messages that are not confirmed may still go out after the last clone is gone.
const LINGER: Duration = Duration::from_secs(10);
/// The defaults of `delivery.timeout.ms`, and of `queue.buffering.max.kbytes`.
const DELIVERY: Duration = Duration::from_secs(30);
const QUEUE: u64 = 65_536;
const POLL: Duration = Duration::from_millis(20);
/// While messages wait for room in the driver's queue.
const POLL_FULL: Duration = Duration::from_millis(1);

/// Publishes with `acks=all`, idempotence and the Java client's partitioner (`murmur2_random`). Made by
/// [`KafkaPublisher::builder`], [`KafkaPublisher::from_url`] or [`KafkaSource::publisher`](crate::KafkaSource::publisher).
///
/// A publish is done when every in-sync replica has the message, and fails when that has not happened within
/// `delivery.timeout.ms` (30 s by default) after the driver took it; it may have been stored all the same. While the
/// driver's queue is full, messages wait as long for room in it. Topics are never created by
/// publishing: an unknown one fails as unroutable. Messages to one partition keep the order of the calls.
///
/// Kafka holds nothing back, so a message for later ([`Outgoing::delay`]) is refused, but by the publisher of a source with
/// [`delays`](crate::KafkaSourceBuilder::delays).
///
/// Clones share one connection. When the last one is dropped, what is not confirmed yet may go out for 10 s more.
#[derive(Clone)]
pub struct KafkaPublisher {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    config: ClientConfig,
    source: Option<Arc<Options>>,
    running: RwLock<Running>,
}

/// The driver's producer and the thread that serves it.
struct Running {
    producer: Arc<BaseProducer<Reports>>,
    stop: Arc<AtomicBool>,
}

/// Options of a [`KafkaPublisher`].
#[derive(Clone)]
#[must_use]
pub struct KafkaPublisherBuilder {
    connection: Result<Connection, String>,
    /// Of the source that it is made from.
    source: Option<Arc<Options>>,
}

impl KafkaPublisherBuilder {
    pub(crate) fn of(mut self, source: Arc<Options>) -> Self {
        self.source = Some(source);
        self
    }

    /// Passes a librdkafka property through. Those that correctness rests on are refused when built, with the reason.
    ///
    /// Often wanted: `delivery.timeout.ms` (default 30000), `linger.ms` (2), `compression.type` (none).
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Ok(connection) = &mut self.connection {
            connection.put(name, value);
        }
        self
    }

    /// Checks the configuration and starts the publisher; it connects in the background.
    ///
    /// # Errors
    /// A [`KafkaError`] with `is_config()` when brokers are missing or malformed, or a property is refused.
    pub fn build(self) -> Result<KafkaPublisher, KafkaError> {
        let connection = self.connection.map_err(KafkaError::config)?;
        connection.refuse("publisher", refused_for_publisher)?;
        let mut config = connection.config(PUBLISHER_DEFAULTS);
        for (name, value) in PUBLISHER_FIXED {
            config.set(*name, *value);
        }
        validate(&config, RDKafkaType::RD_KAFKA_PRODUCER)?;
        let running = RwLock::new(Running::start(&connection, &config)?);
        Ok(KafkaPublisher { inner: Arc::new(Inner { connection, config, source: self.source, running }) })
    }
}

impl Running {
    fn start(connection: &Connection, config: &ClientConfig) -> Result<Self, KafkaError> {
        let kilobytes = connection.number("queue.buffering.max.kbytes").unwrap_or(QUEUE);
        let limits = Limits {
            patience: match connection.number("delivery.timeout.ms") {
                // The driver's word for no limit.
                Some(0) => Duration::MAX,
                limit => limit.map_or(DELIVERY, Duration::from_millis),
            },
            bytes: usize::try_from(kilobytes.saturating_mul(1024)).unwrap_or(usize::MAX),
        };
        let reports = Reports::new(connection.brokers(), Trouble::new(config), limits);
        let producer: BaseProducer<Reports> =
            config.create_with_context(reports).map_err(KafkaError::from_config)?;
        let producer = Arc::new(producer);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (producer.clone(), stop.clone());
        thread::Builder::new()
            .name("kafka-publisher".to_owned())
            .spawn(move || serve(&polled, &stopped))
            .map_err(|error| {
                KafkaError::config("the thread of the kafka publisher cannot be started").with_source(error)
            })?;
        Ok(Self { producer, stop })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Inner {
    /// The driver's producer; a new one if the last has failed for good, which an idempotent producer does when it
    /// cannot tell any more what the broker has.
    fn producer(&self) -> Arc<BaseProducer<Reports>> {
        let current = || self.running.read().unwrap_or_else(PoisonError::into_inner).producer.clone();
        let producer = current();
        if !producer.context().is_dead() {
            return producer;
        }
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        if running.producer.context().is_dead() {
            match Running::start(&self.connection, &self.config) {
                Ok(new) => *running = new,
                Err(error) => tracing::error!(%error, "the kafka publisher cannot be started anew"),
            }
        }
        running.producer.clone()
    }
}

impl fmt::Debug for KafkaPublisherBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisherBuilder").field("connection", &self.connection).finish()
    }
}

/// Serves delivery reports until the last clone is gone, then lets out what is left. The producer ends on this
/// thread, since its end blocks.
fn serve(producer: &Arc<BaseProducer<Reports>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        serve_once(producer);
    }
    let deadline = std::time::Instant::now() + LINGER;
    while producer.context().has_waiting() && std::time::Instant::now() < deadline {
        serve_once(producer);
    }
    if let Err(error) = producer.flush(deadline.saturating_duration_since(std::time::Instant::now())) {
        tracing::warn!(%error, "messages were not confirmed before the publisher ended");
    }
}

fn serve_once(producer: &BaseProducer<Reports>) {
    // A poll takes its whole time, however much comes.
    producer.poll(if producer.context().has_waiting() { POLL_FULL } else { POLL });
    producer.context().send_waiting(producer);
}

impl KafkaPublisher {
    /// Starts a publisher at these brokers: `host:port[,host:port]`.
    pub fn builder(brokers: impl AsRef<str>) -> KafkaPublisherBuilder {
        let brokers = brokers.as_ref();
        let checked = url::check_hosts(brokers).map(|()| Connection::new(brokers));
        KafkaPublisherBuilder { connection: checked.map_err(|error| error.to_string()), source: None }
    }

    /// Starts a publisher from a URL as [`KafkaSource::from_url`](crate::KafkaSource::from_url) takes it; a query
    /// parameter is a property of the publisher here.
    pub fn from_url(url: impl AsRef<str>) -> KafkaPublisherBuilder {
        let connection = url::parse(url.as_ref()).map_err(|error| error.to_string());
        KafkaPublisherBuilder { connection, source: None }
    }

    pub(crate) fn with(connection: Connection) -> KafkaPublisherBuilder {
        KafkaPublisherBuilder { connection: Ok(connection), source: None }
    }
}

impl Publisher for KafkaPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let (answer, answered) = oneshot::channel();
        match route(self.inner.source.as_deref(), outgoing, SystemTime::now()) {
            Ok((topic, outgoing)) => {
                let producer = self.inner.producer();
                producer.context().publish(&producer, Pending::new(topic, outgoing, answer));
            }
            // Whoever waits for it has its end below.
            Err(refused) => drop(answer.send(Err(refused))),
        }
        async move {
            answered.await.unwrap_or_else(|_| {
                Err(PublishError::unavailable("the kafka publisher ended before the message was confirmed"))
            })
        }
    }
}

impl fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisher").field("connection", &self.inner.connection).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_that_correctness_rests_on_are_refused_with_the_reason() {
        for name in ["acks", "enable.idempotence", "allow.auto.create.topics", "transactional.id"] {
            let error = KafkaPublisher::builder("h:1").property(name, "1").build().unwrap_err();
            assert!(error.is_config() && error.to_string().contains(name), "{error}");
        }
        KafkaPublisher::builder("127.0.0.1:1").property("linger.ms", "0").build().unwrap();
    }

    #[tokio::test]
    async fn a_message_that_never_fits_into_the_queue_is_told_at_once() {
        let publisher = KafkaPublisher::builder("127.0.0.1:1")
            .property("queue.buffering.max.kbytes", "1")
            .property("message.max.bytes", "1000000")
            .build()
            .unwrap();
        let large = Outgoing::new("t", consumer_core::Message::new(vec![0; 2000]));
        assert!(publisher.publish(large).await.unwrap_err().is_too_large());
    }

    /// A sequence number the broker does not expect is fatal to an idempotent producer.
    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_fatal_error_it_starts_anew() {
        let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let publisher = KafkaPublisher::builder(cluster.bootstrap_servers())
            .property("delivery.timeout.ms", "3000")
            .build()
            .unwrap();
        let publish = || publisher.publish(Outgoing::new("t", consumer_core::Message::new("x")));
        publish().await.unwrap();
        cluster.request_errors(
            rdkafka::types::RDKafkaApiKey::Produce,
            &[rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
        );
        let mut failed = 0;
        while publish().await.is_err() {
            failed += 1;
            assert!(failed < 5, "it is never well again");
        }
        assert!(failed > 0, "the fault was not injected");
    }

    #[test]
    fn a_wrong_url_is_an_error_of_the_build() {
        assert!(KafkaPublisher::from_url("amqp://h").build().unwrap_err().is_config());
    }
}
