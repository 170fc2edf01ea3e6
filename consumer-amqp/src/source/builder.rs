//! Options of a source.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::AmqpSource;
use crate::{
    connection::Connection,
    declare::Policy,
    error::{AmqpError, Kind},
    topology::Queue,
    url,
};

/// RabbitMQ's own default.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of an [`AmqpSource`].
///
/// # Defaults
/// | option | default |
/// |---|---|
/// | queue | none: it is required; a plain name is a [quorum queue](Queue::quorum) |
/// | [`prefetch`](Self::prefetch) | the run's `max_in_flight`, from 64 on four times that |
/// | [`consumer_timeout`](Self::consumer_timeout) | 30 min, RabbitMQ's own |
/// | [`start_timeout`](Self::start_timeout) | 30 s |
/// | [`heartbeat`](Self::heartbeat) | 10 s |
/// | [`connection_timeout`](Self::connection_timeout) | 10 s |
/// | user, password, vhost | `guest`, `guest`, `/` |
#[derive(Debug, Clone)]
#[must_use]
pub struct AmqpSourceBuilder {
    connection: Result<Connection, String>,
    queue: Option<Queue>,
    policy: Policy,
    prefetch: Option<u16>,
    consumer_timeout: Duration,
    start_timeout: Duration,
}

/// What the source needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(super) connection: Connection,
    pub(super) queue: Queue,
    pub(super) policy: Policy,
    pub(super) prefetch: Option<u16>,
    pub(super) consumer_timeout: Duration,
    pub(super) start_timeout: Duration,
}

impl AmqpSourceBuilder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            connection: url::parse(url).map_err(|error| error.to_string()),
            queue: None,
            policy: Policy::default(),
            prefetch: None,
            consumer_timeout: CONSUMER_TIMEOUT,
            start_timeout: START_TIMEOUT,
        }
    }

    /// Names the queue, or describes it. It is declared with its dead-letter queue, exchanges and bindings where it does
    /// not exist; one that exists is compared, and never changed. Required.
    pub fn queue(mut self, queue: impl Into<Queue>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Declares nothing: what is missing or differs is an error.
    pub fn check_only(mut self) -> Self {
        self.policy.check_only = true;
        self
    }

    /// Takes a queue that exists with another type, durability or dead-letter route, with a warning. What the broker then
    /// does with a message it gives up is the business of whoever declared the queue.
    pub fn accept_foreign_queue(mut self) -> Self {
        self.policy.accept_foreign = true;
        self
    }

    /// Sets how many deliveries the broker sends ahead. Default: the run's `max_in_flight`, so that a message waits in the
    /// queue where other consumers can have it; from 64 on four times as many, up to the 2,000 that a quorum queue gives one
    /// consumer, so that handlers do not wait for the broker. Memory is bounded by this number of messages.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = Some(messages);
        self
    }

    /// Says what the broker's `consumer_timeout` is, where that is not 30 min: RabbitMQ closes the channel of a consumer
    /// that holds a delivery for longer. A message that waits (for a backoff, a claim, a rate) is handed back to the queue
    /// after half of it and comes again; that costs one of the queue's deliveries, of which there are 1,000. With an
    /// order nothing is handed back, since later messages would pass: a wait that is longer than this costs the channel,
    /// and everything on it comes again in its order. `Duration::MAX` where the broker has no such timeout.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = timeout;
        self
    }

    /// Bounds how long the first connection may take; later outages are waited out. Default: 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    fn edit(mut self, edit: impl FnOnce(&mut Connection) -> Result<(), AmqpError>) -> Self {
        if let Ok(connection) = &mut self.connection
            && let Err(error) = edit(connection)
        {
            self.connection = Err(error.to_string());
        }
        self
    }

    /// Sets user and password, instead of those in the URL.
    pub fn credentials(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.edit(|connection| {
            connection.user = user.into();
            connection.password = password.into().into();
            Ok(())
        })
    }

    /// Trusts the certificates in this PEM file, beside those of the system. For `amqps://`.
    pub fn ca_certificate(self, file: impl Into<PathBuf>) -> Self {
        self.edit(|connection| {
            connection.tls_files("ca_certificate")?.authority = Some(file.into());
            Ok(())
        })
    }

    /// Shows this certificate to the broker; both files are PEM. For `amqps://`.
    pub fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.edit(|connection| {
            let files = connection.tls_files("client_certificate")?;
            files.certificate = Some(certificate.into());
            files.key = Some(key.into());
            Ok(())
        })
    }

    /// Sets the heartbeat: a connection on which nothing came for twice as long is lost. Whole seconds, 1 to 3,600.
    pub fn heartbeat(self, every: Duration) -> Self {
        self.edit(|connection| {
            connection.heartbeat = every;
            Ok(())
        })
    }

    /// Bounds each attempt to connect.
    pub fn connection_timeout(self, timeout: Duration) -> Self {
        self.edit(|connection| {
            connection.timeout = timeout;
            Ok(())
        })
    }

    /// Names the connections in the broker's own lists. Default: `consumer-amqp`, with what each is for.
    pub fn connection_name(self, name: impl Into<String>) -> Self {
        self.edit(|connection| {
            connection.name = name.into();
            Ok(())
        })
    }

    /// Checks the options. It connects at the first poll.
    ///
    /// # Errors
    /// An [`AmqpError`] with `is_config()` when the URL is wrong, the queue is missing or cannot be as described, or a
    /// certificate cannot be read.
    pub fn build(self) -> Result<AmqpSource, AmqpError> {
        let connection = self.connection.map_err(|error| AmqpError::new(Kind::Config, error))?;
        connection.check()?;
        let queue =
            self.queue.ok_or_else(|| AmqpError::config("an amqp source needs the name of a queue"))?;
        queue.check()?;
        if self.consumer_timeout < Duration::from_secs(1) {
            return Err(AmqpError::config("a consumer_timeout below 1 s leaves no time to hold a message"));
        }
        Ok(AmqpSource::new(Arc::new(Options {
            connection,
            queue,
            policy: self.policy,
            prefetch: self.prefetch,
            consumer_timeout: self.consumer_timeout,
            start_timeout: self.start_timeout,
        })))
    }
}
