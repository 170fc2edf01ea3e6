//! Dead letters from the operator's side: reading them, sending them back, throwing them away.
//!
//! [`DeadLetters`] is a topic or queue of them; adapters implement it. [`DeadLetter`] reads what the
//! [dead-letter layer](crate::layers::dead_letter) has written, [`redriven`] makes the message that goes back.
//! The crate `consumer-admin` builds its commands on these.

mod letter;
mod redrive;
#[cfg(test)]
mod tests;

use std::fmt;

use async_trait::async_trait;

use crate::BoxError;
pub use letter::{BrokerDeath, DeadLetter, Place};
pub use redrive::{NoWayBack, redriven};

/// A topic or queue of dead letters.
#[async_trait]
pub trait DeadLetters: fmt::Debug + Send + Sync {
    /// Starts to read what is there now; what is set aside later may be left out.
    ///
    /// # Errors
    /// When the broker is not reached, there is no such topic or queue, or this user may not read it. Trying again is
    /// safe.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was taken from a queue goes back to it.
    async fn open(&self) -> Result<Box<dyn Letters>, DeadLettersError>;
}

/// Dead letters being read. Reading changes nothing: what is not [settled](Self::settle) is there again afterwards.
///
/// Dropped without [`close`](Self::close), it gives back what it holds in the background, or the broker does when the
/// connection is gone. So does a process that dies.
#[async_trait]
pub trait Letters: fmt::Debug + Send + Sync {
    /// How many letters there are to read, as far as the broker tells; those settled before may be among them.
    fn expected(&self) -> Option<u64>;

    /// What the user has to know meanwhile, such as that other readers are shut out.
    fn notice(&self) -> Option<&str> {
        None
    }

    /// The next letter; `None` when all that were there at the opening have been read.
    ///
    /// # Errors
    /// When the broker is away or does not let this user go on. What was read and not settled is still there.
    ///
    /// # Cancel safety
    /// No letter is left out: one that was on its way comes with the next call.
    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError>;

    /// Makes sure, as far as that can be known beforehand, that letters can be settled. To be called before the first is
    /// published or thrown away: what cannot be settled would be published again and again.
    ///
    /// # Errors
    /// When letters cannot be settled, with what to do about it. Trying again is safe.
    ///
    /// # Cancel safety
    /// Nothing is settled.
    fn prepare(&mut self) -> BoxFuture<Result<(), DeadLettersError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Says that a letter is dealt with: it is never read again. `Ok` means that the broker was told. Where it confirms this
    /// (Kafka), it is certain from then on; where it does not (RabbitMQ), from the end of [`close`](Self::close), and the
    /// letters settled last may be read again if this process dies or the connection breaks before that.
    ///
    /// The future does not borrow from `self`: many can be waited for at once, while further letters are read.
    ///
    /// # Errors
    /// When the broker does not confirm; the letter may then be read again. Trying again is safe.
    ///
    /// # Cancel safety
    /// Enqueued by the call; dropped, the answer is lost.
    fn settle(&mut self, place: Place, how: Settled) -> BoxFuture<Result<(), DeadLettersError>>;

    /// Waits for what was settled, and gives back the rest, in its order as far as the broker can.
    ///
    /// # Errors
    /// When the broker does not confirm; what was not settled is there all the same.
    ///
    /// # Cancel safety
    /// Dropped, the broker gives back what is not settled when it notices.
    async fn close(self: Box<Self>) -> Result<(), DeadLettersError>;
}

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// It was published again, and that was confirmed.
    Redriven,
    /// It was thrown away.
    Discarded,
}

impl Settled {
    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Settled::Redriven => "redriven",
            Settled::Discarded => "discarded",
        }
    }
}

/// Dead letters that cannot be read or settled.
pub struct DeadLettersError {
    message: String,
    missing: bool,
    transient: bool,
    source: Option<BoxError>,
}

impl DeadLettersError {
    /// An error in words: what was being done, at which broker, and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), missing: false, transient: false, source: None }
    }

    /// There is no such topic or queue.
    pub fn missing(message: impl Into<String>) -> Self {
        Self { missing: true, ..Self::new(message) }
    }

    /// The broker is away or does not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { transient: true, ..Self::new(message) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether there is no such topic or queue.
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether the same may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        self.transient
    }
}

impl fmt::Debug for DeadLettersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLettersError")
            .field("message", &self.message)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DeadLettersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeadLettersError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}
