//! Sets a message aside when it has failed for good.
//!
//! The failure is published with its provenance to a dead-letter target; only when the broker has confirmed that is
//! the message done with, and only then is its key marked as dead-lettered. While the publish fails, the layer keeps
//! the failure and the claim and repeats *only the publish*, and is not ready, so that the source pauses.
//!
//! A failure that reaches this layer is final, whatever its class; what should be tried again belongs to the layers
//! inside. A message that was handed back ([`Failure::is_cancelled`]) is not a failure and passes through; so does a
//! transient failure after its [cancellation](crate::Message::cancellation).
//!
//! A failure may name a target of its own ([`Failure::dead_letter_to`]). If that does not exist, the message goes to the
//! layer's target, with a warning; while publishing to it fails otherwise, that message waits alone and the source goes
//! on: only the layer's own target pauses it.
//!
//! ```
//! use consumer_core::{DeadLetterLayer, Failure, Message, Outcome, memory::MemoryBroker};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders.dead", 1);
//! let mut stack = ServiceBuilder::new()
//!     .layer(DeadLetterLayer::new(broker.publisher(), "orders.dead"))
//!     .service(service_fn(|_: Message| async { Err::<(), _>(Failure::permanent("no such order")) }));
//!
//! assert_eq!(stack.ready().await?.call(Message::new("o-17")).await?, Outcome::DeadLettered);
//! let dead = &broker.records("orders.dead")[0];
//! assert_eq!(dead.headers().get_str("dead-letter-reason"), Some("permanent"));
//! assert_eq!(dead.headers().get_str("dead-letter-error"), Some("no such order"));
//! # Ok(())
//! # }
//! ```

mod provenance;
mod service;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use tower::Layer;

use crate::{
    Publisher,
    layers::target::Target,
    pipeline::{DeadLetterFacts, Explain, Facts},
    time::{WallClock, system},
};
pub use provenance::Reason;
#[cfg(test)]
pub(crate) use provenance::headers as provenance_of;
pub use service::DeadLetter;
use service::Shared;

#[cfg(doc)]
use crate::Failure;

/// Publishes messages that failed for good to a dead-letter topic or queue.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`backoff`](Self::backoff) | 100 ms to 10 s | a target that is away comes back; hammering it does not help |
/// | [`consumer`](Self::consumer) | the dedup layer's | named in `dead-letter-consumer` |
#[derive(Clone)]
#[must_use]
pub struct DeadLetterLayer<P> {
    publisher: P,
    target: Arc<str>,
    consumer: Option<Arc<str>>,
    first_wait: Duration,
    longest_wait: Duration,
    clock: Arc<dyn WallClock>,
}

impl<P: Publisher> DeadLetterLayer<P> {
    /// Sets messages aside in `target`, which has to exist.
    pub fn new(publisher: P, target: impl Into<Arc<str>>) -> Self {
        Self {
            publisher,
            target: target.into(),
            consumer: None,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
            clock: system(),
        }
    }

    /// Names the consumer in stacks without a dedup layer.
    pub fn consumer(mut self, name: impl Into<Arc<str>>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Sets the waits between two tries of a publish: doubled from `first` up to `longest`.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.first_wait = first;
        self.longest_wait = longest;
        self
    }

    /// Sets the clock of the header times.
    pub fn clock(mut self, clock: impl WallClock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl<S, P: Publisher> Layer<S> for DeadLetterLayer<P> {
    type Service = DeadLetter<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadLetter::new(inner, Arc::new(Shared { config: self.clone(), target: Target::default() }))
    }
}

impl<P> Explain for DeadLetterLayer<P> {
    fn explain(&self, facts: &mut Facts) {
        facts.dead_letter = Some(DeadLetterFacts { target: self.target.to_string() });
    }
}

impl<P> fmt::Debug for DeadLetterLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetterLayer")
            .field("target", &self.target)
            .field("consumer", &self.consumer)
            .field("first_wait", &self.first_wait)
            .field("longest_wait", &self.longest_wait)
            .finish_non_exhaustive()
    }
}
