//! Whether a layer keeps tower's readiness contract: it calls only a service that it has seen ready.
//!
//! The trap is that the clone of a ready service is not ready. [`Probe`] makes that visible: its clones start unready,
//! and calling it unready panics.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::time::Duration;
//! use consumer_testing::readiness::assert_readiness_contract;
//!
//! assert_readiness_contract(consumer_core::TimeoutLayer::new(Duration::from_secs(1))).await;
//! # }
//! ```

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{BoxError, Failure, Message, Outcome};
use tower::{Layer, Service};

/// The innermost service of a readiness test: counts calls, and panics when called unready.
#[derive(Debug)]
pub struct Probe {
    ready: bool,
    /// Whether the first poll of each clone is pending, as with a concurrency limit.
    hesitates: bool,
    polled: bool,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicUsize,
    unready: AtomicUsize,
}

impl Probe {
    /// A probe that is ready at its first poll.
    pub fn new() -> Self {
        Self { ready: false, hesitates: false, polled: false, counts: Arc::default() }
    }

    /// A probe whose first poll is pending, in each of its clones.
    #[must_use]
    pub fn hesitating(mut self) -> Self {
        self.hesitates = true;
        self
    }

    /// A clone that shares the counts.
    pub fn watch(&self) -> Self {
        self.clone()
    }

    /// How often it and its clones were called.
    pub fn calls(&self) -> usize {
        self.counts.calls.load(Ordering::Relaxed)
    }

    /// How often they were called without having been ready.
    pub fn unready_calls(&self) -> usize {
        self.counts.unready.load(Ordering::Relaxed)
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

/// The clone of a ready service is not ready.
impl Clone for Probe {
    fn clone(&self) -> Self {
        Self { ready: false, hesitates: self.hesitates, polled: false, counts: self.counts.clone() }
    }
}

impl Service<Message> for Probe {
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.hesitates && !self.polled {
            self.polled = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Message) -> Self::Future {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        if !std::mem::take(&mut self.ready) {
            self.counts.unready.fetch_add(1, Ordering::Relaxed);
            panic!("a service was called that was not ready: perhaps the clone of a ready one");
        }
        self.polled = false;
        // Pending once, so that calls overlap.
        Box::pin(async {
            tokio::task::yield_now().await;
            Ok(Outcome::Processed)
        })
    }
}

/// Puts a probe under the layer and calls it in all the ways that a careless layer gets wrong: again and again, from
/// clones of a ready service, and overlapping.
///
/// # Panics
/// When the layer calls a service that is not ready, does not pass a call on, or answers with an error.
pub async fn assert_readiness_contract<L>(layer: L)
where
    L: Layer<Probe>,
    L::Service: Service<Message> + Clone,
    <L::Service as Service<Message>>::Response: Into<Outcome>,
    <L::Service as Service<Message>>::Error: Into<BoxError>,
{
    for probe in [Probe::new(), Probe::new().hesitating()] {
        let watch = probe.watch();
        let mut service = layer.layer(probe);
        let checked = tokio::time::timeout(Duration::from_secs(3_600), check(&mut service)).await;
        let calls = checked.expect("the layer answers within an hour");
        assert_eq!(watch.unready_calls(), 0, "the layer called a service that was not ready");
        assert_eq!(watch.calls(), calls, "the layer passes every call on, once");
    }
}

async fn check<S>(service: &mut S) -> usize
where
    S: Service<Message> + Clone,
    S::Response: Into<Outcome>,
    S::Error: Into<BoxError>,
{
    let mut calls = 0;
    // One after the other.
    for _ in 0..3 {
        calls += 1;
        ready(service).await;
        done(service.call(message()).await);
    }
    // Ready is asked twice.
    calls += 1;
    ready(service).await;
    ready(service).await;
    done(service.call(message()).await);
    // A clone of a ready service, and the ready one.
    calls += 2;
    ready(service).await;
    let mut clone = service.clone();
    let first = service.call(message());
    ready(&mut clone).await;
    let second = clone.call(message());
    done(first.await);
    done(second.await);
    // Overlapping calls of one instance.
    calls += 3;
    let mut running = Vec::new();
    for _ in 0..3 {
        ready(service).await;
        running.push(service.call(message()));
    }
    for call in running {
        done(call.await);
    }
    // A clone of one that is in the middle of a call.
    calls += 2;
    ready(service).await;
    let first = service.call(message());
    let mut clone = service.clone();
    ready(&mut clone).await;
    done(clone.call(message()).await);
    done(first.await);
    calls
}

fn message() -> Message {
    Message::builder().payload("{}").key("key").id(crate::unique("message")).build()
}

async fn ready<S>(service: &mut S)
where
    S: Service<Message>,
    S::Error: Into<BoxError>,
{
    if let Err(error) = poll_fn(|cx| service.poll_ready(cx)).await {
        panic!("the layer is not ready: {:?}", error.into());
    }
}

fn done<R: Into<Outcome>, E: Into<BoxError>>(result: Result<R, E>) {
    match result {
        Ok(outcome) => assert_eq!(outcome.into(), Outcome::Processed, "a fresh message is processed"),
        Err(error) => panic!("the layer failed: {:?}", error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps a clone and calls that: the mistake that the probe is for.
    #[derive(Clone)]
    struct Careless(Probe);

    impl Service<Message> for Careless {
        type Response = Outcome;
        type Error = Failure;
        type Future = <Probe as Service<Message>>::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            self.0.poll_ready(cx)
        }

        fn call(&mut self, message: Message) -> Self::Future {
            self.0.clone().call(message)
        }
    }

    #[tokio::test]
    #[should_panic(expected = "not ready")]
    async fn a_careless_layer_is_found_out() {
        assert_readiness_contract(tower::layer::layer_fn(Careless)).await;
    }

    #[tokio::test]
    async fn no_layer_at_all_keeps_the_contract() {
        assert_readiness_contract(tower::layer::util::Identity::new()).await;
    }
}
