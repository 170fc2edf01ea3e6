//! The delayed-retry layer at work on one message.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower::Service;

use super::{
    DelayedRetryLayer,
    policy::{Next, next},
};
use crate::{
    BoxError, Failure, FailureKind, Headers, Message, Origin, Outcome, Outgoing, Publisher,
    dedup::Resolution, failure::chain, layers::target::Target, message::wire, scope::answered,
};

/// The service that [`DelayedRetryLayer`] makes. It is ready when its inner service is, unless the broker is away.
pub struct DelayedRetry<S, P> {
    inner: S,
    shared: Arc<Shared<P>>,
}

pub(super) struct Shared<P> {
    pub(super) config: DelayedRetryLayer<P>,
    pub(super) target: Target,
}

impl<S, P> DelayedRetry<S, P> {
    pub(super) fn new(inner: S, shared: Arc<Shared<P>>) -> Self {
        Self { inner, shared }
    }
}

impl<S, P> Service<Message> for DelayedRetry<S, P>
where
    S: Service<Message>,
    S::Response: Into<Outcome>,
    S::Error: Into<BoxError>,
    P: Publisher,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = ResponseFuture<S::Future, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        ready!(self.shared.target.poll_up(cx));
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        // A dedup layer inside knows better; without one the count would start anew.
        let message = match count_in(&message, wire::RETRY_ATTEMPT) {
            0 => message,
            attempt => message.with_attempt(attempt),
        };
        let state = State::Handling { inner: self.inner.call(message.clone()) };
        ResponseFuture { state, shared: Some((self.shared.clone(), message)) }
    }
}

pin_project! {
    /// The future of [`DelayedRetry`]. Without a failure it costs no allocation.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, P> {
        #[pin]
        state: State<F>,
        shared: Option<(Arc<Shared<P>>, Message)>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Handling { #[pin] inner: F },
        Deferring { deferring: Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>> },
    }
}

impl<F, R, E, P> Future for ResponseFuture<F, P>
where
    F: Future<Output = Result<R, E>>,
    R: Into<Outcome>,
    E: Into<BoxError>,
    P: Publisher,
{
    type Output = Result<Outcome, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Handling { inner } => match ready!(inner.poll(cx)) {
                    Ok(response) => return Poll::Ready(Ok(response.into())),
                    Err(error) => {
                        let failure = Failure::from_error(error);
                        let Some((shared, message)) = this.shared.take() else {
                            return Poll::Ready(Err(failure));
                        };
                        let failure = failure.or_handed_back(message.is_cancelled());
                        let Some(next) = shared.next(&message, &failure) else {
                            return Poll::Ready(Err(failure));
                        };
                        let deferring = Box::pin(shared.defer(message, failure, next));
                        this.state.set(State::Deferring { deferring });
                    }
                },
                StateProjection::Deferring { deferring } => return deferring.as_mut().poll(cx),
            }
        }
    }
}

impl<P: Publisher> Shared<P> {
    /// None where waiting cannot help, or has helped as often as it may.
    fn next(&self, message: &Message, failure: &Failure) -> Option<Next> {
        if !matches!(failure.kind(), FailureKind::Transient | FailureKind::Exhausted) {
            return None;
        }
        let next = next(&self.config.delays, count_in(message, wire::RETRY_ROUND), failure.retry_after())?;
        let origin = message.origin();
        if message.scope().is_some_and(|scope| scope.run().is_ordered()) {
            tracing::error!(%origin, "no delayed retry in a run with an order: later messages would pass this one");
            return None;
        }
        target_of(origin)?;
        if next.is_capped {
            let asked = failure.retry_after();
            tracing::warn!(%origin, ?asked, delay = ?next.delay, "the wait that was asked for is longer than every delay");
        }
        Some(next)
    }

    /// Publishes the copy, then records it. The claim stays with this future until then: dropped before the confirm, it is
    /// released as failed; dropped after it, the record is on its way.
    async fn defer(
        self: Arc<Self>,
        message: Message,
        mut failure: Failure,
        next: Next,
    ) -> Result<Outcome, Failure> {
        let attempt = failure.attempts().unwrap_or(message.attempt()).saturating_add(1);
        let Some(outgoing) = self.copy(&message, &failure, attempt, next) else { return Err(failure) };
        let claim = failure.take_claim();
        match self.publish(&outgoing, &message).await {
            Ok(()) => {}
            Err(Unpublished::HandedBack) => {
                // The claim, dropped here, is released as failed: the call was one.
                return Err(Failure::cancelled("handed back while its delayed copy waited for the broker"));
            }
            Err(Unpublished::Refused) => {
                if let Some(claim) = claim {
                    failure.set_claim(claim);
                }
                return Err(failure);
            }
        }
        let (origin, delay, round) = (message.origin(), next.delay, next.round);
        tracing::warn!(%origin, attempt, round, ?delay, error = %failure.cause(), "message was deferred");
        if let Some(claim) = claim {
            let record = claim.resolve_failure(Resolution::Deferred { attempt }, delay);
            let _ = answered(message.scope(), record).await;
        }
        Ok(Outcome::Deferred)
    }

    fn copy(&self, message: &Message, failure: &Failure, attempt: u32, next: Next) -> Option<Outgoing> {
        let now = self.config.clock.now();
        let not_before = now + next.delay;
        let mut headers = Headers::with_capacity(10);
        headers.append(wire::RETRY_ATTEMPT, attempt.to_string());
        headers.append(wire::RETRY_ROUND, next.round.to_string());
        headers.append(wire::RETRY_NOT_BEFORE, wire::format_time(not_before));
        let known = message.headers();
        if !known.contains(wire::RETRY_FIRST_FAILED_AT) {
            let first = failure.first_failed_at().unwrap_or(now);
            headers.append(wire::RETRY_FIRST_FAILED_AT, wire::format_time(first));
        }
        // Of the first copy: where a later one comes from says nothing.
        if !known.contains(wire::RETRY_SOURCE) {
            message.origin().write_to(wire::RETRY_PREFIX, message.timestamp(), &mut headers);
        }
        let target = target_of(message.origin())?;
        let copy = Outgoing::copy(target, message.clone()).set_all(&headers);
        Some(copy.not_before(not_before).delay(next.delay))
    }

    /// Repeats the publish until it is confirmed.
    async fn publish(&self, outgoing: &Outgoing, message: &Message) -> Result<(), Unpublished> {
        let mut wait = self.config.first_wait;
        let mut away = None;
        loop {
            let Err(error) = self.config.publisher.publish(outgoing.clone()).await else { return Ok(()) };
            let origin = message.origin();
            if !error.is_transient() {
                tracing::error!(%origin, error = %chain(&error), "delayed copy is refused: no delayed retry");
                return Err(Unpublished::Refused);
            }
            away.get_or_insert_with(|| self.target.away());
            tracing::error!(%origin, error = %chain(&error), "delayed copy could not be published: trying again");
            let slept = message.wait_or_cancelled(tokio::time::sleep(wait)).await;
            slept.ok_or(Unpublished::HandedBack)?;
            wait = wait.saturating_mul(2).min(self.config.longest_wait.max(Duration::from_millis(1)));
        }
    }
}

enum Unpublished {
    HandedBack,
    /// Trying again does not help.
    Refused,
}

/// A count in one of our own headers; what is no number counts as absent.
fn count_in(message: &Message, header: &str) -> u32 {
    message.headers().get_str(header).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Where a copy comes back.
fn target_of(origin: &Origin) -> Option<Arc<str>> {
    match origin {
        Origin::Local => None,
        Origin::Log { topic, .. } => Some(topic.clone()),
        Origin::Queue { queue, .. } => Some(queue.clone()),
    }
}

impl<S: Clone, P> Clone for DelayedRetry<S, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: fmt::Debug, P> fmt::Debug for DelayedRetry<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedRetry").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F, P> fmt::Debug for ResponseFuture<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("delayed_retry::ResponseFuture")
    }
}
