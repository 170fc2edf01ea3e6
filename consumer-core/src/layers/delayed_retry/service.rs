//! The delayed-retry layer at work on one message.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower::Service;

use super::{
    DelayedRetryLayer,
    parking::Seat,
    policy::{Next, next},
    turn::{ordering_of, refuse},
};
use crate::{
    BoxError, Failure, FailureKind, Headers, Message, Origin, Outcome, Outgoing, Publisher,
    dedup::Resolution,
    failure::chain,
    layers::{
        after::{After, Dealing, DealsWith},
        target::Target,
    },
    message::wire,
    runtime::Ordering,
    scope::{Run, answered},
};

/// The service that [`DelayedRetryLayer`] makes. It is ready when its inner service is, unless the broker is away.
pub struct DelayedRetry<S, P> {
    inner: S,
    shared: Arc<Shared<P>>,
}

/// What its calls share.
#[derive(Debug)]
pub struct Shared<P> {
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
    S: Service<Message> + Clone + Send + 'static,
    S::Response: Into<Outcome>,
    S::Error: Into<BoxError>,
    S::Future: Send,
    P: Publisher,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = After<S::Future, Shared<P>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if let Some(run) = Run::that_asks()
            && let Some(why) = self.shared.refusal(run.ordering())
        {
            run.refuse(why);
            return Poll::Pending;
        }
        ready!(self.shared.target.poll_up(cx));
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        if let Some(why) = self.shared.refusal(ordering_of(&message)) {
            return After::whole(Box::pin(refuse(message, why)));
        }
        // A dedup layer inside knows better; without one the count would start anew.
        let message = match message.retry_count(wire::RETRY_ATTEMPT) {
            0 => message,
            attempt => message.with_attempt(attempt),
        };
        let Some((parking, seat)) = self.shared.seat(&message) else {
            return After::call(self.inner.call(message.clone()), self.shared.clone(), message);
        };
        let next = self.inner.clone();
        let ready = mem::replace(&mut self.inner, next);
        After::whole(Box::pin(self.shared.clone().in_turn(ready, message, parking, seat)))
    }
}

impl<P: Publisher> DealsWith for Shared<P> {
    fn deal_with(self: Arc<Self>, message: Message, failure: Failure) -> Result<Dealing, Failure> {
        match self.next(&message, &failure) {
            None if self.is_put_off(&message, &failure) && !is_in_order(&message) => {
                Ok(Box::pin(self.put_off(message, failure, None)))
            }
            None => Err(failure),
            Some(_) if is_in_order(&message) => {
                let origin = message.origin();
                tracing::error!(%origin, "no delayed retry without an idempotency key: later messages would pass this one");
                Err(failure)
            }
            Some(next) => Ok(Box::pin(self.defer(message, failure, next, None))),
        }
    }
}

impl<P: Publisher> Shared<P> {
    /// None where waiting cannot help, or has helped as often as it may.
    pub(super) fn next(&self, message: &Message, failure: &Failure) -> Option<Next> {
        if !matches!(failure.kind(), FailureKind::Transient | FailureKind::Exhausted) || failure.is_given_up()
        {
            return None;
        }
        let next = next(&self.config.delays, message.retry_count(wire::RETRY_ROUND), failure.retry_after())?;
        let origin = message.origin();
        target_of(origin)?;
        if next.is_capped {
            let asked = failure.retry_after();
            tracing::warn!(%origin, ?asked, delay = ?next.delay, "the wait that was asked for is longer than every delay");
        }
        Some(next)
    }

    /// Publishes the copy, then records it. The claim stays with this future until then: dropped before the confirm, it is
    /// released as failed; dropped after it, the record is on its way.
    pub(super) async fn defer(
        self: Arc<Self>,
        message: Message,
        mut failure: Failure,
        next: Next,
        seat: Option<Seat>,
    ) -> Result<Outcome, Failure> {
        let attempt = failure.attempts().unwrap_or(message.attempt()).saturating_add(1);
        let headers = self.retry_headers(&message, &failure, attempt, next);
        let Some(outgoing) = self.copy(&message, headers, next.delay, next.delay) else {
            return Err(failure);
        };
        // Once the original is done with, later messages of the key would pass it.
        if let Some(seat) = seat {
            seat.defer(&message, next.delay).await?;
            failure.set_seat(seat);
        }
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

    /// It was handed back only because the broker lets nobody hold it for longer.
    pub(super) fn is_put_off(&self, message: &Message, failure: &Failure) -> bool {
        failure.is_cancelled()
            && message.is_overdue()
            && !message.is_cancelled()
            && !self.config.delays.is_empty()
            && target_of(message.origin()).is_some()
    }

    /// Waits at the broker instead of here. That counts neither as an attempt nor as a round: the claim is given back with
    /// what had failed, and the copy asks for what the message asked for.
    pub(super) async fn put_off(
        self: Arc<Self>,
        message: Message,
        failure: Failure,
        seat: Option<Seat>,
    ) -> Result<Outcome, Failure> {
        let delay = self.config.delays.first().copied();
        let copy = delay.and_then(|delay| self.copy(&message, Headers::with_capacity(6), delay, delay));
        let (Some(delay), Some(copy)) = (delay, copy) else { return Err(failure) };
        if let Some(seat) = seat {
            seat.defer(&message, delay).await?;
        }
        if self.publish(&copy, &message).await.is_err() {
            return Err(failure);
        }
        let origin = message.origin();
        tracing::warn!(%origin, ?delay, "message has waited for as long as it can be held: it goes on waiting at the broker");
        Ok(Outcome::Deferred)
    }

    fn retry_headers(&self, message: &Message, failure: &Failure, attempt: u32, next: Next) -> Headers {
        let mut headers = Headers::with_capacity(11);
        // As the store knows it: this may be the original of a message that was redriven meanwhile.
        if let Some(redrive) = failure.redrive_count().filter(|redrive| *redrive > message.redrive_count()) {
            headers.append(wire::REDRIVE_COUNT, redrive.to_string());
        }
        headers.append(wire::RETRY_ATTEMPT, attempt.to_string());
        headers.append(wire::RETRY_ROUND, next.round.to_string());
        if message.retry_header(wire::RETRY_FIRST_FAILED_AT).is_none() {
            let first = failure.first_failed_at().unwrap_or_else(|| self.config.clock.now());
            headers.append(wire::RETRY_FIRST_FAILED_AT, wire::format_time(first));
        }
        headers
    }

    /// A copy that comes back after `wait`, at the latest when the delay has ended.
    pub(super) fn copy(
        &self,
        message: &Message,
        mut headers: Headers,
        delay: Duration,
        wait: Duration,
    ) -> Option<Outgoing> {
        let target = target_of(message.origin())?;
        let not_before = self.config.clock.now() + wait;
        headers.append(wire::RETRY_NOT_BEFORE, wire::format_time(not_before));
        let mut copy = Outgoing::copy(target, message.clone());
        // Of the first copy: where a later one comes from says nothing.
        if message.retry_header(wire::RETRY_SOURCE).is_none() {
            message.origin().write_to(wire::RETRY_PREFIX, message.timestamp(), &mut headers);
            copy = copy.remove_prefix(wire::RETRY_PREFIX);
        }
        let copy = copy.set_all(&headers);
        Some(copy.not_before(not_before).delay(delay))
    }

    /// Repeats the publish until it is confirmed.
    pub(super) async fn publish(&self, outgoing: &Outgoing, message: &Message) -> Result<(), Unpublished> {
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

pub(super) enum Unpublished {
    HandedBack,
    /// Trying again does not help.
    Refused,
}

/// Without a seat it would be passed by others of its key.
fn is_in_order(message: &Message) -> bool {
    ordering_of(message) == Ordering::Key && message.key().is_some()
}

/// Where a copy comes back.
pub(super) fn target_of(origin: &Origin) -> Option<Arc<str>> {
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
