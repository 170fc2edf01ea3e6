//! The publisher: many messages on their way, each done when the broker has confirmed it.

mod delay;
mod frame;
mod job;
mod link;
mod properties;
mod returns;
mod worker;

use std::{
    fmt,
    future::{Future, ready},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use consumer_core::{Headers, Outgoing, PublishError, Publisher};
use futures_util::future::Either;
use lapin::types::ShortString;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::Instant,
};

#[cfg(test)]
pub(crate) use self::properties::properties as properties_of;
use self::{
    job::{Job, Place},
    worker::Worker,
};
use crate::{connection::Connection, error::AmqpError, topology::check_name, url};

const TIMEOUT: Duration = Duration::from_secs(30);
/// What may wait, on its way included.
const MESSAGES: usize = 16_384;
const BYTES: usize = 64 << 20;

/// Publishes with confirms and `mandatory`, persistent. Made by [`AmqpPublisher::builder`] or
/// [`AmqpSource::publisher`](crate::AmqpSource::publisher).
///
/// The target of a message is the name of a queue, or the routing key when the publisher has an
/// [`exchange`](AmqpPublisherBuilder::exchange). `Ok` means that a queue took the message and the broker keeps it: on a
/// quorum queue, on a majority of its nodes. What leads to no queue fails as unroutable.
///
/// # What it guarantees and what not
/// - Messages go out in the order of the calls, those with a delay apart, over a connection of its own. One that was on its
///   way when the connection broke is sent again, before later ones, so it may be stored **twice, with the same id**.
/// - A message that is not confirmed within [`timeout`](AmqpPublisherBuilder::timeout) fails, and may have been stored
///   all the same. While the broker blocks publishers (memory or disk is low), messages wait for as long.
/// - 16,384 messages or 64 MiB may wait; beyond that a publish fails at once.
///
/// # How messages are mapped
/// Headers become the table of headers, as byte strings; a repeated one becomes an array, a null `void`. `message-id` is
/// written to the property `message_id` as well, where it fits (UTF-8, 255 bytes); `correlation-id` and `content-type`
/// become those properties; the message key becomes the header `message-key`. A tombstone is an empty payload here. A
/// message that was delivered by RabbitMQ keeps its properties and the types of its headers, except `expiration`, `user_id`
/// and the headers `CC` and `BCC`, which would act again; a dead letter lists them in `dead-letter-dropped`.
///
/// The driver logs a message that comes back unroutable at level `warn`, with its payload and headers: where those are
/// secret, switch its target `lapin::returned_messages` off.
///
/// Clones share one connection. When the last one is dropped, what is not confirmed yet still goes out. It works on the
/// tokio runtime of the first publish, in a task.
///
/// # Later
/// With [`Outgoing::delay`] a message waits in a queue `<target>.retry.<delay>`, which is declared at the first use, and comes
/// to its target by the broker when the time is up: no plugin, and no longer than 49 days. With an earlier
/// [`Outgoing::not_before`] it comes then, or once those in front of it in that queue are gone. The way back is
/// at-least-once.
#[derive(Clone)]
pub struct AmqpPublisher {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    exchange: ShortString,
    timeout: Duration,
    bounds: Arc<Bounds>,
    worker: Mutex<Option<mpsc::UnboundedSender<Job>>>,
    waiting_queues: delay::Known,
}

/// What is waiting, over all clones.
#[derive(Debug, Default)]
struct Bounds {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Bounds {
    fn take(&self, bytes: usize) -> bool {
        let before = self.messages.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // One message is always let in, however large: the broker has the last word on that.
        let fits = before < MESSAGES && (before == 0 || bytes_before.saturating_add(bytes) <= BYTES);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Options of an [`AmqpPublisher`].
#[derive(Debug, Clone)]
#[must_use]
pub struct AmqpPublisherBuilder {
    connection: Result<Connection, String>,
    exchange: Option<String>,
    timeout: Duration,
}

impl AmqpPublisherBuilder {
    /// Publishes to this exchange; the target of a message is its routing key. Default: RabbitMQ's default exchange,
    /// where the target is the name of a queue.
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.exchange = Some(name.into());
        self
    }

    /// Bounds how long a message may take to be confirmed, outages included. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets user and password, instead of those in the URL.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        if let Ok(connection) = &mut self.connection {
            connection.user = user.into();
            connection.password = password.into().into();
        }
        self
    }

    /// Names the connection in the broker's own lists. Default: `consumer-amqp`, with what it is for.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        if let Ok(connection) = &mut self.connection {
            connection.name = name.into();
        }
        self
    }

    /// Checks the options. It connects at the first publish.
    ///
    /// # Errors
    /// An [`AmqpError`] with `is_config()` when the URL or the name of the exchange is wrong, or a certificate cannot be
    /// read.
    pub fn build(self) -> Result<AmqpPublisher, AmqpError> {
        let connection = self.connection.map_err(AmqpError::config)?;
        connection.check()?;
        let exchange = self.exchange.unwrap_or_default();
        if !exchange.is_empty() {
            check_name("exchange", &exchange)?;
        }
        if self.timeout.is_zero() {
            return Err(AmqpError::config("the timeout of a publisher is zero: nothing could be confirmed"));
        }
        Ok(AmqpPublisher {
            inner: Arc::new(Inner {
                connection,
                exchange: ShortString::from(exchange),
                timeout: self.timeout,
                bounds: Arc::default(),
                worker: Mutex::new(None),
                waiting_queues: delay::Known::default(),
            }),
        })
    }
}

impl AmqpPublisher {
    /// Starts a publisher to a broker, by a URL as [`AmqpSource::builder`](crate::AmqpSource::builder) takes it.
    pub fn builder(url: impl AsRef<str>) -> AmqpPublisherBuilder {
        let connection = url::parse(url.as_ref()).map_err(|error| error.to_string());
        AmqpPublisherBuilder { connection, exchange: None, timeout: TIMEOUT }
    }

    pub(crate) fn with(connection: Connection) -> AmqpPublisherBuilder {
        AmqpPublisherBuilder { connection: Ok(connection), exchange: None, timeout: TIMEOUT }
    }
}

impl Inner {
    /// Enqueued by the call.
    fn publish_to(
        &self,
        target: &str,
        outgoing: &Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let (answer, answered) = oneshot::channel();
        self.enqueue(target, outgoing, answer);
        async move {
            answered.await.unwrap_or_else(|_| {
                Err(PublishError::unavailable("the runtime that the publisher worked on has ended"))
            })
        }
    }

    fn enqueue(&self, target: &str, outgoing: &Outgoing, answer: job::Answer) {
        let refuse = |error, answer: job::Answer| drop(answer.send(Err(error)));
        let Some(place) = Place::new(self.bounds.clone(), size(outgoing)) else {
            let address = self.connection.address();
            let error = format!(
                "rabbitmq at {address} does not keep up: the publisher holds {MESSAGES} messages or {BYTES} bytes \
                 (target {target})"
            );
            return refuse(PublishError::unavailable(error), answer);
        };
        let now = Instant::now();
        let deadline = now.checked_add(self.timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        match Job::new(&self.exchange, target, outgoing, deadline, place, answer) {
            Ok(job) => self.send(job),
            Err((error, answer)) => refuse(error, answer),
        }
    }

    fn send(&self, job: Job) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let job = match worker.as_ref() {
            // Fails when the runtime it worked on is gone.
            Some(inbox) => match inbox.send(job) {
                Ok(()) => return,
                Err(mpsc::error::SendError(job)) => job,
            },
            None => job,
        };
        let Ok(runtime) = Handle::try_current() else {
            let mut job = job;
            return job.finish(Err(PublishError::unavailable("an amqp publisher needs a tokio runtime")));
        };
        let (sender, inbox) = mpsc::unbounded_channel();
        // It has just been made.
        let _ = sender.send(job);
        runtime.spawn(Worker::new(self.connection.clone(), inbox).run());
        *worker = Some(sender);
    }
}

/// What a message takes, without what the driver needs besides.
fn size(outgoing: &Outgoing) -> usize {
    let headers = |headers: &Headers| -> usize {
        headers.iter().map(|(name, value)| name.len() + value.map_or(0, |value| value.len())).sum()
    };
    let message = outgoing.message();
    message.payload().len() + headers(message.headers()) + headers(outgoing.changes())
}

impl Publisher for AmqpPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let Some(delay) = outgoing.delay_by() else {
            let refused = outgoing.due().map(|_| {
                PublishError::refused("rabbitmq holds messages back for a delay, and not until a time")
            });
            let published = match refused {
                Some(error) => Err(error),
                None => Ok(self.inner.publish_to(outgoing.target(), &outgoing)),
            };
            return Either::Left(async move { published?.await });
        };
        if !self.inner.exchange.as_str().is_empty() {
            let error =
                "a publisher to an exchange cannot delay: messages wait in a queue that leads to another one";
            return Either::Right(Either::Left(ready(Err(PublishError::refused(error)))));
        }
        let delayed = delay::publish(self.inner.clone(), outgoing, delay);
        Either::Right(Either::Right(spawned(delayed)))
    }
}

/// Goes on although the future is dropped.
fn spawned(
    publish: impl Future<Output = Result<(), PublishError>> + Send + 'static,
) -> impl Future<Output = Result<(), PublishError>> + Send + 'static {
    let task = Handle::try_current().map(|runtime| runtime.spawn(publish));
    async move {
        let lost = |_| PublishError::unavailable("the runtime that the publisher worked on has ended");
        match task {
            Ok(task) => task.await.map_err(lost)?,
            Err(_) => Err(PublishError::unavailable("an amqp publisher needs a tokio runtime")),
        }
    }
}

impl fmt::Debug for AmqpPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpPublisher")
            .field("connection", &self.inner.connection)
            .field("exchange", &self.inner.exchange.as_str())
            .field("bounds", &self.inner.bounds)
            .finish_non_exhaustive()
    }
}
