//! Tries a message again later, by the broker: the wait survives restarts and occupies nothing here.
//!
//! When the attempts in the process are used up, a copy of the message is published with its next attempt and the time
//! before which it must not come. Only when the broker has confirmed that, the key is recorded as *deferred*, and only
//! then is the original done with. A crash in between leaves an original that comes again: before the record it is
//! handled once more, after it the store says that a later attempt stands for it. So there is never a second chain of
//! retries, and the count of attempts never starts anew.
//!
//! The layer belongs outside of dedup and inside of the dead-letter layer: what has used up its delays goes on to that
//! one, and so does what waiting cannot help, a permanent or undecodable failure. A failure that asks for a wait
//! ([`Failure::retry_after`]) gets the next delay that is as long; the longest where none is, with a warning.
//!
//! Each further round is one call more, where the retry layer inside counts to a limit: that limit bounds the attempts
//! over all processes, and what comes at it gets exactly one.
//!
//! **Later messages of the same key pass** the one that waits. A run with an order does not allow that: there the failure
//! goes straight on to the dead-letter layer, with an error in the log.
//!
//! The publisher has to be able to delay ([`Outgoing::delay`]): the one in memory and the one for RabbitMQ can, and on Kafka
//! that of a source which was built with the same delays. One that cannot refuses, and the failure goes on.
//!
//! ```
//! use std::time::Duration;
//!
//! use consumer_core::{
//!     Consumer, DelayedRetryLayer, Failure, Message, Outgoing, Publisher, handler::handler, memory::MemoryBroker,
//! };
//! use tower::ServiceBuilder;
//!
//! async fn confirm(message: Message) -> Result<(), Failure> {
//!     match message.attempt() {
//!         1 => Err(Failure::transient("the provider is down")),
//!         _ => Ok(()),
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders", 1);
//! broker.publisher().publish(Outgoing::new("orders", Message::builder().payload("o-17").id("1").build())).await?;
//!
//! let stack = ServiceBuilder::new()
//!     .layer(DelayedRetryLayer::new(broker.publisher()).delays([Duration::from_secs(30), Duration::from_secs(300)]))
//!     .service(handler(confirm));
//! let consumer = Consumer::new(broker.source("mails", ["orders"]), stack).stop_when_idle(Duration::from_secs(60));
//! let report = consumer.run().await?;
//! assert_eq!((report.deferred, report.processed), (1, 1));
//! # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(()) }).unwrap();
//! ```

mod policy;
mod service;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use tower::Layer;

use crate::{
    Publisher,
    layers::target::Target,
    pipeline::{DelayedRetryFacts, Explain, Facts},
    time::{WallClock, system},
};
pub use service::DelayedRetry;
use service::Shared;

#[cfg(doc)]
use crate::{Failure, Outgoing};

/// Hands a message that failed to the broker, to come again after a delay. See the [module](self).
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`delays`](Self::delays) | 30 s, 5 min, 1 h | a restart, a deployment, an outage |
/// | [`backoff`](Self::backoff) | 100 ms to 10 s | between two tries to publish the copy |
#[derive(Clone)]
#[must_use]
pub struct DelayedRetryLayer<P> {
    publisher: P,
    delays: Arc<[Duration]>,
    first_wait: Duration,
    longest_wait: Duration,
    clock: Arc<dyn WallClock>,
}

impl<P: Publisher> DelayedRetryLayer<P> {
    /// Copies go out by this publisher, back to the topic or queue that the message came from.
    pub fn new(publisher: P) -> Self {
        Self {
            publisher,
            delays: [30, 300, 3600].map(Duration::from_secs).into(),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
            clock: system(),
        }
    }

    /// Sets how long each round waits; there are as many rounds as delays. Sorted by length. None is no delayed retry.
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        let mut delays: Vec<Duration> = delays.into_iter().filter(|delay| !delay.is_zero()).collect();
        delays.sort_unstable();
        self.delays = delays.into();
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

impl<S, P: Publisher> Layer<S> for DelayedRetryLayer<P> {
    type Service = DelayedRetry<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        DelayedRetry::new(inner, Arc::new(Shared { config: self.clone(), target: Target::default() }))
    }
}

impl<P> Explain for DelayedRetryLayer<P> {
    fn explain(&self, facts: &mut Facts) {
        if !self.delays.is_empty() {
            facts.delayed_retry = Some(DelayedRetryFacts { delays: self.delays.to_vec() });
        }
    }
}

impl<P> fmt::Debug for DelayedRetryLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedRetryLayer").field("delays", &self.delays).finish_non_exhaustive()
    }
}
