//! Drives a stack from a source.
//!
//! The runtime owns the source and is the only one who settles. It takes messages while there is room and the stack
//! is ready, runs each in a task of its own (or on lanes), and acks what the stack has dealt with. A failure that
//! leaves the stack is presented again after a backoff, with its offset or tag held: nothing is dropped for it.

mod driver;
mod finished;
mod health;
mod idle;
mod lanes;
mod meter;
mod ordering;
mod present;
mod report;
mod scopes;
#[cfg(feature = "signal")]
pub mod signal;
#[cfg(test)]
mod tests;

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tower::Service;

use crate::{BoxError, Message, Outcome, Source, time::LONGEST};
use driver::Driver;
pub use health::{Health, Status};
pub use ordering::Ordering;
pub use report::{Report, RunError};

/// What every stack is: a service over messages whose answer says what happened. A bound, not a trait to implement.
pub trait Stack:
    Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

impl<S> Stack for S where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Consumes a source with a stack until it is told to stop.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | [`max_in_flight`](Self::max_in_flight) | 256 | enough to hide a round trip to the store |
/// | [`ordering`](Self::ordering) | none | the fastest; Kafka users may expect [`Ordering::Partition`] |
/// | [`drain_timeout`](Self::drain_timeout) | 10 s | below the 30 s most orchestrators grant |
/// | [`backoff`](Self::backoff) | 1 s to 1 min | for failures that leave the stack |
/// | [`wedged_after`](Self::wedged_after) | 5 min | when liveness is given up |
///
/// ```
/// use consumer_core::{Consumer, Message, Outgoing, Publisher, memory::MemoryBroker};
/// use tower::service_fn;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::new();
/// broker.create_topic("orders", 4);
/// broker.publisher().publish(Outgoing::new("orders", Message::new("o-17"))).await?;
///
/// let stack = service_fn(|message: Message| async move {
///     println!("{:?}", message.payload());
///     Ok::<_, std::io::Error>(())
/// });
/// let report = Consumer::new(broker.source("mails", ["orders"]).finite(), stack).run().await?;
/// assert_eq!(report.processed, 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a consumer does nothing until it is run"]
pub struct Consumer<Src, S> {
    source: Src,
    stack: S,
    health: Health,
    config: Config,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
}

#[derive(Debug, Clone)]
struct Config {
    name: String,
    max_in_flight: usize,
    ordering: Ordering,
    drain: Duration,
    first_wait: Duration,
    longest_wait: Duration,
    idle: Option<Duration>,
    lanes: Option<usize>,
    discard_after: Option<u32>,
}

impl<Src: Source, S: Stack> Consumer<Src, S> {
    /// A consumer of `source` with `stack`.
    pub fn new(source: Src, stack: S) -> Self {
        let config = Config {
            name: "consumer".to_owned(),
            max_in_flight: 256,
            ordering: Ordering::None,
            drain: Duration::from_secs(10),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
            idle: None,
            lanes: None,
            discard_after: None,
        };
        let shutdown = Box::pin(std::future::pending());
        Self { source, stack, health: Health::new(Duration::from_secs(300)), config, shutdown }
    }

    /// Names the consumer in logs and metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Bounds how many deliveries are held at once, executing or waiting; at least 1. How many execute is what a
    /// concurrency limit in the stack bounds.
    pub fn max_in_flight(mut self, deliveries: usize) -> Self {
        self.config.max_in_flight = deliveries.max(1);
        self
    }

    /// Sets which deliveries run one after another.
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.config.ordering = ordering;
        self
    }

    /// Stops when the future resolves: no message is taken any more, waiting layers hand theirs back, and what
    /// executes has [`drain_timeout`](Self::drain_timeout) to finish.
    pub fn shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.shutdown = Box::pin(signal);
        self
    }

    /// Sets how long executing messages may take to finish after the shutdown was asked for; then they are dropped
    /// and delivered again later.
    ///
    /// What comes after that (dropping, flushing the stores, closing the source) takes at most 10 s together: with the
    /// default the run ends within 20 s.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.config.drain = limit.min(LONGEST);
        self
    }

    /// Sets the waits before a failure that left the stack is presented again: doubled from `first` up to `longest`.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.config.first_wait = first;
        self.config.longest_wait = longest;
        self
    }

    /// Gives a message up after it was presented this often and its failure left the stack each time: it is rejected,
    /// logged and counted, and **lost** unless the broker keeps rejected messages. Off by default.
    pub fn discard_after(mut self, presentations: u32) -> Self {
        self.config.discard_after = Some(presentations.max(1));
        self
    }

    /// Stops when nothing was delivered for so long. The time runs from the first assignment, starts anew with every
    /// delivery, stands still while the source is disconnected or paused, and never ends a run with something in
    /// flight.
    pub fn stop_when_idle(mut self, idle: Duration) -> Self {
        self.config.idle = Some(idle.min(LONGEST));
        self
    }

    /// The fast mode: deliveries share this many tasks instead of having one each. A handler that blocks its thread
    /// holds up its lane.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.config.lanes = Some(lanes.max(1));
        self
    }

    /// Sets after how long without a finished delivery, while one executes, the consumer no longer counts as live.
    pub fn wedged_after(self, limit: Duration) -> Self {
        self.health.set_wedged_after(limit);
        self
    }

    /// Tells how the consumer is while it runs; for liveness and readiness probes.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until the shutdown signal, the end of the source, or its idle time.
    ///
    /// # Errors
    /// When the source cannot go on, before the stop or during the drain; what was in flight was drained before, and the
    /// error holds the report.
    ///
    /// # Cancel safety
    /// Dropping the future is a crash: nothing that was in flight is acked, all of it is delivered again, and the
    /// claims are released if the runtime it ran on goes on long enough for that.
    pub async fn run(self) -> Result<Report, RunError> {
        let Self { source, stack, health, config, shutdown } = self;
        Driver::new(source, stack, health, config, shutdown).run().await
    }
}

impl<Src, S> fmt::Debug for Consumer<Src, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("config", &self.config).finish_non_exhaustive()
    }
}
