//! Queues and exchanges: create, compare, look at, delete.

use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};

use crate::{
    AmqpDeadLetters,
    connection::{Connection, leave},
    declare::{self, Policy},
    error::AmqpError,
    topology::{Exchange, Queue, check_name},
    url,
};

/// A client that creates queues and exchanges and looks at them. Each call connects anew and leaves again.
#[derive(Debug, Clone)]
pub struct AmqpAdmin {
    connection: Connection,
}

impl AmqpAdmin {
    /// A client from a URL as [`AmqpSource::builder`](crate::AmqpSource::builder) takes it.
    ///
    /// # Errors
    /// An [`AmqpError`] with `is_config()` when the URL is wrong or a certificate cannot be read.
    pub fn new(url: impl AsRef<str>) -> Result<Self, AmqpError> {
        let connection = url::parse(url.as_ref())?;
        connection.check()?;
        Ok(Self::with(connection))
    }

    pub(crate) fn with(connection: Connection) -> Self {
        Self { connection }
    }

    /// Creates the queue, with its dead-letter queue, exchanges and bindings, where it does not exist. One that exists is
    /// compared and left as it is.
    ///
    /// # Errors
    /// With `is_mismatch()` when it exists and is another one. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the queue may be created or not.
    pub async fn ensure_queue(&self, queue: impl Into<Queue>) -> Result<(), AmqpError> {
        self.declare(queue.into(), Policy::default()).await
    }

    /// As [`ensure_queue`](Self::ensure_queue), but one that exists and differs is taken, with a warning.
    ///
    /// # Errors
    /// When the broker is not reached or refuses. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the queue may be created or not.
    pub async fn ensure_queue_or_foreign(&self, queue: impl Into<Queue>) -> Result<(), AmqpError> {
        self.declare(queue.into(), Policy { check_only: false, accept_foreign: true }).await
    }

    /// Compares the queue with what exists and changes nothing.
    ///
    /// # Errors
    /// With `is_missing()` or `is_mismatch()`, naming both sides.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn check_queue(&self, queue: impl Into<Queue>) -> Result<(), AmqpError> {
        self.declare(queue.into(), Policy { check_only: true, accept_foreign: false }).await
    }

    async fn declare(&self, queue: Queue, policy: Policy) -> Result<(), AmqpError> {
        queue.check()?;
        let connection = self.connection.connect("admin").await?;
        let declared = declare::queue(&connection, &queue, policy).await;
        leave(connection).await;
        declared
    }

    /// Creates the exchange where it does not exist.
    ///
    /// # Errors
    /// With `is_mismatch()` when it exists and is of another kind. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the exchange may be created or not.
    pub async fn ensure_exchange(&self, exchange: Exchange) -> Result<(), AmqpError> {
        check_name("exchange", exchange.name())?;
        let connection = self.connection.connect("admin").await?;
        let declared = declare::exchange(&connection, &exchange, false).await;
        leave(connection).await;
        declared
    }

    /// How many messages are ready in the queue, those that consumers hold not counted; `None` where there is no such
    /// queue.
    ///
    /// # Errors
    /// When the broker is not reached or refuses. Trying again is safe.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn depth(&self, queue: &str) -> Result<Option<u64>, AmqpError> {
        check_name("queue", queue)?;
        let connection = self.connection.connect("admin").await?;
        let depth = declare::depth(&connection, queue).await;
        leave(connection).await;
        depth
    }

    /// The dead letters in a queue, to be read, sent back or thrown away. It connects when it is opened.
    pub fn dead_letters(&self, queue: impl Into<String>) -> AmqpDeadLetters {
        AmqpDeadLetters::new(self.connection.clone(), queue.into())
    }

    /// Deletes the queue and every message in it.
    ///
    /// # Errors
    /// When the broker is not reached or refuses. Trying again is safe: a queue that does not exist is no error.
    ///
    /// # Cancel safety
    /// Dropped, the queue may be deleted or not.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), AmqpError> {
        check_name("queue", queue)?;
        let connection = self.connection.connect("admin").await?;
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        let channel = declare::channel(&connection).await?;
        let deleted = channel.queue_delete(queue.into(), options).await;
        declare::close(channel).await;
        leave(connection).await;
        match deleted
            .map_err(|error| AmqpError::driver(format!("the queue `{queue}` cannot be deleted"), error))
        {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes every message that is ready in the queue; how many those were.
    ///
    /// # Errors
    /// With `is_missing()` when there is no such queue. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the messages may be removed or not.
    pub async fn purge_queue(&self, queue: &str) -> Result<u64, AmqpError> {
        check_name("queue", queue)?;
        let connection = self.connection.connect("admin").await?;
        let options = QueuePurgeOptions { nowait: false };
        let channel = declare::channel(&connection).await?;
        let purged = channel.queue_purge(queue.into(), options).await;
        declare::close(channel).await;
        leave(connection).await;
        purged
            .map(u64::from)
            .map_err(|error| AmqpError::driver(format!("the queue `{queue}` cannot be purged"), error))
    }
}
