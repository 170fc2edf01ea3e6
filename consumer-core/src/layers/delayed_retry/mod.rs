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
//! A message that has waited here for as long as its broker lets it be held ([`Message::hold_until`]: RabbitMQ closes a
//! channel over one that is held for too long) goes on waiting at the broker, for the shortest delay, instead of being handed
//! back. That counts as no attempt and no round.
//!
//! Each further round is one call more, where the retry layer inside counts to a limit: that limit bounds the attempts
//! over all processes, and what comes at it gets exactly one.
//!
//! **Later messages of the same key pass** the one that waits, unless the run has an order. A run with
//! [`ordering(Partition)`](crate::runtime::Ordering::Partition) is refused: it ends with an error before it
//! connects to the broker. So is one with [`ordering(Key)`](crate::runtime::Ordering::Key) that names no parking. (Behind a layer that
//! polls what is inside it in a task of its own, as tower's `Buffer` does, the run is seen with its first message: then it is
//! refused with that, and hands everything back.)
//!
//! # Parking
//!
//! With [`parking`](DelayedRetryLayer::parking) and `ordering(Key)`, later messages of the key are parked behind the one that
//! waits, and have their turn in order; other keys go on. The dedup store has the list of those that wait, one for each
//! message key, since after a rebalance another process owns the key. Every message of a key looks there before it is
//! handled, at the cost of one operation of the store.
//!
//! - **It is the list that keeps the order**, not the broker. Parked messages wait at the broker, and one that comes back
//!   before its turn waits again. That counts as no attempt.
//! - **Written before published, and published before acked.** A crash in between leaves a message that comes again and finds
//!   its place. A message leaves the list when its success or its dead letter is recorded, and no sooner.
//! - **There is a bound**, 1,000 for each key by default ([`Parking::limit`]). What comes beyond it fails for good: it is
//!   dead-lettered with an error that says so. Redriven later, it comes after the others.
//! - **They come back together**: just behind the one that waits, and what comes after that is due, at the next multiple of
//!   the shortest delay on the wall clock. So a key has caught up within a few of the shortest delay, as long as it is
//!   handled faster than it is written to. On Kafka and RabbitMQ they wait in the topic or queue of that delay, behind what
//!   came there before them: retries of many other keys make that later, by one delay at most each time.
//!   A key whose new messages come to another member than its parked ones, and faster than those are worked off, stays
//!   behind by about the shortest delay, and no more.
//! - **The store forgets** a list whose first message has not come back for the retention; then the order of that key is
//!   lost, and no message. The same happens when the store loses state.
//!
//! - **All members need it.** In a rolling deployment those without parking handle messages of parked keys at once. Where
//!   delayed retry is switched off again, keep the parking, with no [`delays`](DelayedRetryLayer::delays): nothing is parked
//!   then, and what was gives its place up.
//! - **With [`OnOutage::Bypass`](crate::dedup::OnOutage::Bypass)** messages of parked keys are handled at once while the store is
//!   away.
//!
//! It needs the dedup layer inside and the dead-letter layer outside, with nothing between the dead-letter layer and this one
//! that makes an error of its own, as a timeout does: the message would be set aside and keep its place. Messages without a message key have no order, and those
//! without an idempotency key cannot be parked: they pass, and their failures are not delayed.
//!
//! ```
//! use std::time::Duration;
//!
//! use consumer_core::{
//!     Consumer, DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, Message, Outgoing, Publisher, handler::handler,
//!     memory::{MemoryBroker, MemoryStore}, runtime::Ordering,
//! };
//! use tower::ServiceBuilder;
//!
//! async fn confirm(message: Message) -> Result<(), Failure> {
//!     match (&message.payload()[..], message.attempt()) {
//!         (b"placed", 1) => Err(Failure::transient("the provider is down")),
//!         _ => Ok(println!("{:?}", message.payload())), // placed, then cancelled
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let broker = MemoryBroker::new();
//! broker.create_topic("orders", 1);
//! for (id, what) in [("1", "placed"), ("2", "cancelled")] {
//!     let message = Message::builder().key("o-17").id(id).payload(what).build();
//!     broker.publisher().publish(Outgoing::new("orders", message)).await?;
//! }
//!
//! let dedup = DedupLayer::new(MemoryStore::new(), "mails");
//! let stack = ServiceBuilder::new()
//!     .layer(DeadLetterLayer::new(broker.publisher(), "orders.dead"))
//!     .layer(DelayedRetryLayer::new(broker.publisher()).delays([Duration::from_secs(30)]).parking(dedup.parking()))
//!     .layer(dedup)
//!     .service(handler(confirm));
//! let consumer = Consumer::new(broker.source("mails", ["orders"]), stack).ordering(Ordering::Key);
//! let report = consumer.stop_when_idle(Duration::from_secs(60)).run().await?;
//! assert_eq!((report.deferred, report.processed), (2, 2));
//! # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(()) }).unwrap();
//! ```
//!
//! # Publishers
//!
//! The publisher has to be able to delay ([`Outgoing::delay`]): the one in memory and the one for RabbitMQ can, and on Kafka
//! that of a source which was built with the same delays. One that cannot refuses, and the failure goes on.
//!
//! # Example
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

mod parking;
mod policy;
mod service;
#[cfg(test)]
mod tests;
mod turn;

use std::{fmt, sync::Arc, time::Duration};

use tower::Layer;

use crate::{
    Publisher,
    layers::target::Target,
    pipeline::{DelayedRetryFacts, Explain, Facts},
    time::{WallClock, system},
};
pub use parking::Parking;
pub(crate) use parking::{Seat, Unparked};
pub use service::DelayedRetry;
use service::Shared;

#[cfg(doc)]
use crate::{Failure, Message, Outgoing};

/// Hands a message that failed to the broker, to come again after a delay. See the [module](self).
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`delays`](Self::delays) | 30 s, 5 min, 1 h | a restart, a deployment, an outage |
/// | [`backoff`](Self::backoff) | 100 ms to 10 s | between two tries to publish the copy |
/// | [`parking`](Self::parking) | none | only `ordering(Key)` needs it |
#[derive(Clone)]
#[must_use]
pub struct DelayedRetryLayer<P> {
    publisher: P,
    delays: Arc<[Duration]>,
    first_wait: Duration,
    longest_wait: Duration,
    parking: Option<Parking>,
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
            parking: None,
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

    /// Parks later messages of a key whose message waits, in runs with `ordering(Key)`: [`DedupLayer::parking`] makes it.
    ///
    /// [`DedupLayer::parking`]: crate::DedupLayer::parking
    pub fn parking(mut self, parking: Parking) -> Self {
        self.parking = Some(parking);
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
            let parking = self.parking.as_ref().map(Parking::max_parked);
            facts.delayed_retry = Some(DelayedRetryFacts { delays: self.delays.to_vec(), parking });
        }
    }
}

impl<P> fmt::Debug for DelayedRetryLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedRetryLayer")
            .field("delays", &self.delays)
            .field("parking", &self.parking)
            .finish_non_exhaustive()
    }
}
