//! Counts at the end of each call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use metrics::{Counter, Histogram, counter, histogram};
use pin_project_lite::pin_project;
use tower::Service;

use super::names;
use crate::{BoxError, Failure, Message, Outcome, layers::outcome_name};

/// The outcomes in the order of the handles.
const OUTCOMES: [&str; 7] =
    ["processed", "duplicate", "dead_lettered", "deferred", "failed", "returned", "dropped"];

/// The handles for one consumer, so that recording looks nothing up.
pub(super) struct Deliveries {
    by_outcome: [(Counter, Histogram); OUTCOMES.len()],
    failed_attempts: Histogram,
}

impl Deliveries {
    pub(super) fn of(consumer: &Arc<str>) -> Arc<Self> {
        let handles = |outcome: &'static str| {
            (
                counter!(names::DELIVERIES, names::CONSUMER => consumer.clone(), names::OUTCOME => outcome),
                histogram!(names::DELIVERY_DURATION, names::CONSUMER => consumer.clone(), names::OUTCOME => outcome),
            )
        };
        Arc::new(Self {
            by_outcome: OUTCOMES.map(handles),
            failed_attempts: histogram!(names::FAILED_ATTEMPTS, names::CONSUMER => consumer.clone()),
        })
    }

    fn record(&self, outcome: &'static str, started: Instant) {
        let Some(index) = OUTCOMES.iter().position(|name| *name == outcome) else { return };
        let (count, duration) = &self.by_outcome[index];
        count.increment(1);
        duration.record(started.elapsed());
    }
}

/// Counts calls of the handler.
pub(crate) struct Attempts {
    ok: Counter,
    failed: Counter,
}

impl Attempts {
    pub(crate) fn of(consumer: &Arc<str>) -> Self {
        let handle = |result: &'static str| counter!(names::ATTEMPTS, names::CONSUMER => consumer.clone(), names::RESULT => result);
        Self { ok: handle("ok"), failed: handle("failed") }
    }

    pub(crate) fn count(&self, ok: bool) {
        let counter = if ok { &self.ok } else { &self.failed };
        counter.increment(1);
    }
}

/// The service of [`MetricsLayer`](super::MetricsLayer). As ready as what is inside it.
#[derive(Clone)]
pub struct Metrics<S> {
    inner: S,
    deliveries: Arc<Deliveries>,
}

impl<S> Metrics<S> {
    pub(super) fn new(inner: S, deliveries: Arc<Deliveries>) -> Self {
        Self { inner, deliveries }
    }
}

impl<S: fmt::Debug> fmt::Debug for Metrics<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S> Service<Message> for Metrics<S>
where
    S: Service<Message, Response: Into<Outcome>>,
    S::Error: Into<BoxError>,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let measure = Measure { deliveries: self.deliveries.clone(), started: Instant::now(), open: true };
        MetricsFuture { call: self.inner.call(message), measure }
    }
}

pin_project! {
    /// The future of [`Metrics`].
    ///
    /// # Cancel safety
    /// Dropping it drops the call and counts the outcome `dropped`.
    pub struct MetricsFuture<F> {
        #[pin]
        call: F,
        measure: Measure,
    }
}

impl<F, T, E> Future for MetricsFuture<F>
where
    F: Future<Output = Result<T, E>>,
    T: Into<Outcome>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.call.poll(cx)).map(Into::into).map_err(Failure::from_error);
        this.measure.close(outcome_name(&result));
        if let Err(failure) = &result
            && let (Some(attempts), false) = (failure.attempts(), failure.is_cancelled())
        {
            this.measure.deliveries.failed_attempts.record(attempts);
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for MetricsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsFuture").finish_non_exhaustive()
    }
}

/// A delivery whose outcome is not known yet.
struct Measure {
    deliveries: Arc<Deliveries>,
    started: Instant,
    open: bool,
}

impl Measure {
    fn close(&mut self, outcome: &'static str) {
        self.open = false;
        self.deliveries.record(outcome, self.started);
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        if self.open {
            self.close("dropped");
        }
    }
}
