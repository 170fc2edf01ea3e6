//! The dedup layer at work on one message.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::timeout;
use tower::Service;

use super::{
    ClaimReply, ClaimRequest, DedupStore, MissingKey, OnOutage, Owner, Resolution, Resolved, StoreKey,
    ask::Asked,
    layer::Config,
    meter::Meter,
    registry::{Asking, HeldClaim, LostClaim, Registry, Settled},
};
use crate::{
    BoxError, Failure, FailureKind, Message, Outcome, failure::chain, layers::delayed_retry::Unparked,
    message::wire, scope::answered, sync,
};

/// How often a message whose record is on its way looks whether the store is away.
const LOOK: Duration = Duration::from_millis(500);

/// The service that [`DedupLayer`](super::DedupLayer) makes.
///
/// It is not ready while its store is known to be down, and never polls its inner service for readiness: that would
/// hold permits of layers inside while it waits.
pub struct Dedup<S, D> {
    pub(super) inner: S,
    pub(super) shared: Arc<Shared<D>>,
}

pub(super) struct Shared<D> {
    pub(super) store: D,
    pub(super) registry: Arc<Registry>,
    pub(super) config: Config,
    pub(super) meter: Meter,
    pub(super) seen_run: AtomicU64,
}

impl<S, D> Service<Message> for Dedup<S, D>
where
    S: Service<Message> + Clone + Send + 'static,
    S::Response: Into<Outcome> + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    D: DedupStore,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.shared.config.on_outage {
            OnOutage::Wait => self.shared.store.poll_available(cx).map(Ok),
            OnOutage::Bypass => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let (shared, inner) = (self.shared.clone(), self.inner.clone());
        let Some(outer) = message.claim().cloned() else { return Box::pin(handle(shared, inner, message)) };
        // Within another claim this one takes the place in the gate: a suspect must not wait for its own message.
        Box::pin(async move {
            outer.leave_gate().await;
            let answer = handle(shared, inner, message.with_claim(None)).await;
            outer.enter_gate().await;
            answer
        })
    }
}

/// How the wait for a message's turn ended.
enum Turn {
    Come,
    /// What is inside cannot become ready.
    Failed(Failure),
    /// Handed back, or the claim was lost meanwhile.
    Over(Failure),
}

/// How a message begins.
#[expect(clippy::large_enum_variant, reason = "one value in a future that is boxed as a whole")]
enum Begun {
    /// Its claim is granted. With a place in the gate the handler may be called; else what is inside said this when it
    /// was asked whether it is ready.
    Claimed(HeldClaim, Option<Poll<Result<(), Failure>>>),
    /// Nothing is to be done.
    Known(Outcome),
    /// No key or no store, and the policy says to go on without a claim.
    Unprotected,
}

/// The way of one message.
///
/// One future that is moved into its box for every message, so what is needed only until the claim is granted lies in
/// one of its own, in the place of what comes later. Whatever waits for others or asks more than once is rare and has a
/// box of its own.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps each of its arguments twice")]
fn handle<S, D>(
    shared: Arc<Shared<D>>,
    mut inner: S,
    message: Message,
) -> impl Future<Output = Result<Outcome, Failure>> + Send
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send> + Send,
    D: DedupStore,
{
    async move {
        let this = &*shared;
        let (held, not_begun) = match this.begin(&message, &mut inner).await? {
            Begun::Claimed(held, not_begun) => (held, not_begun),
            Begun::Known(outcome) => return Ok(outcome),
            Begun::Unprotected => return Box::pin(this.unprotected(inner, message)).await,
        };
        let turn = match not_begun {
            None => Turn::Come,
            Some(ready) => Box::pin(this.turn(&held, &mut inner, &message, ready)).await,
        };
        let failure = match turn {
            Turn::Over(failure) => return Err(failure),
            Turn::Failed(failure) => failure,
            // Granted after the stop: what has not begun does not begin any more.
            Turn::Come if message.is_cancelled() => return Err(handed_back()),
            Turn::Come => {
                let called = {
                    let mut running = pin!(inner.call(this.inside(&message, &held)));
                    let called = poll_fn(|cx| held.poll_run(running.as_mut(), cx)).await;
                    called.map(|called| called.map(Into::into).map_err(Failure::from_error))
                };
                match called {
                    Ok(Ok(outcome)) => {
                        // The effect has happened: whatever becomes of the record, the handler must not run again.
                        let resolution = resolution_of(outcome, &held);
                        let recording = held.resolve(&this.store, resolution, this.config.retention);
                        let recording = answered(message.scope(), recording);
                        let recorded = match this.config.on_outage {
                            OnOutage::Wait => Some(recording.await),
                            OnOutage::Bypass => Box::pin(this.unless_away(recording)).await,
                        };
                        if let Some((settled, took)) = recorded {
                            this.meter.complete_answered(took);
                            this.recorded(settled);
                        }
                        return Ok(outcome);
                    }
                    Ok(Err(failure)) => failure,
                    Err(LostClaim) => return Err(this.lost(&held)),
                }
            }
        };
        Err(this.failed(held, failure.or_handed_back(message.is_cancelled())))
    }
}

impl<D: DedupStore> Shared<D> {
    /// Asks the store for the message's claim, and takes its place in the gate if it can have one at once.
    async fn begin<S>(&self, message: &Message, inner: &mut S) -> Result<Begun, Failure>
    where
        S: Service<Message, Error: Into<BoxError>> + Send,
    {
        let Some(mut request) = self.request(message).map_err(|failure| self.unclaimed(failure))? else {
            self.meter.keyless();
            return Ok(Begun::Unprotected);
        };
        self.register(message);
        if self.is_bypassed() {
            self.meter.bypassed();
            return Ok(Begun::Unprotected);
        }
        let now = sync::now();
        let asked = match self.registry.try_enter(&mut request, now) {
            Some(ticket) => {
                let asking = Asking::new(ticket);
                let (reply, took) = answered(message.scope(), self.store.claim(request)).await;
                self.meter.claim_answered(took);
                match reply {
                    Ok(ClaimReply::Claimed(claim)) if !self.is_too_slow(took) => {
                        Asked::Granted(asking, claim, now)
                    }
                    Ok(ClaimReply::Completed) => {
                        asking.answered();
                        Asked::Known(Outcome::Duplicate)
                    }
                    reply => Box::pin(self.ask_again(asking, reply, now, took, message)).await?,
                }
            }
            None => Box::pin(self.join(request, message)).await?,
        };
        let (asking, claim, sent) = match asked {
            Asked::Granted(asking, claim, sent) => (asking, claim, sent),
            Asked::Known(outcome) => return Ok(Begun::Known(outcome)),
            Asked::Unprotected => return Ok(Begun::Unprotected),
        };
        if claim.suspect {
            self.meter.suspect();
        }
        if claim.crashes >= self.config.max_crashes {
            return Err(self.given_up(asking.granted(claim, sent, false).0));
        }
        if let Some(unparked) = message.extension::<Unparked>() {
            return Err(self.uncalled(asking.granted(claim, sent, false).0, unparked.failure()));
        }
        // Permits of layers between this one and the retry layer come before the place in the gate: a suspect that
        // has the gate to itself must not wait for a permit whose holder waits for the gate.
        let ready = poll_fn(|cx| Poll::Ready(inner.poll_ready(cx))).await.map_err(Failure::from_error);
        let enter = matches!(ready, Poll::Ready(Ok(()))) && !claim.suspect;
        let (held, inside) = asking.granted(claim, sent, enter);
        Ok(Begun::Claimed(held, (!inside).then_some(ready)))
    }

    /// Waits for the record of what has happened, unless the store is away and the policy says to go on without it. Then
    /// the record is made when the store comes back, or is lost with this process.
    async fn unless_away<F: Future>(&self, recording: F) -> Option<F::Output> {
        let mut recording = pin!(recording);
        loop {
            if let Ok(recorded) = timeout(LOOK, recording.as_mut()).await {
                return Some(recorded);
            }
            if self.is_bypassed() {
                self.meter.bypassed();
                return None;
            }
        }
    }

    /// The message as the handler gets it.
    fn inside(&self, message: &Message, held: &HeldClaim) -> Message {
        let claim = held.claim();
        if claim.attempts > 0 {
            message.count_retry();
        }
        message
            .clone()
            .with_attempt(claim.attempts.saturating_add(1))
            .with_epoch(claim.epoch)
            .with_claim(held.handle())
    }

    /// None for a message without a key, if such are handled.
    fn request(&self, message: &Message) -> Result<Option<ClaimRequest>, Failure> {
        let Some(key) = self.key_of(message)? else { return Ok(None) };
        let config = &self.config;
        Ok(Some(ClaimRequest {
            key,
            owner: Owner::default(),
            fingerprint: config.fingerprint.of(message)?,
            lease: config.lease,
            grace: config.grace,
            attempt: message.retry_count(wire::RETRY_ATTEMPT).max(1),
            redrive: message.redrive_count(),
        }))
    }

    fn key_of(&self, message: &Message) -> Result<Option<StoreKey>, Failure> {
        if let Some(defect) = message.defect() {
            return Err(Failure::undecodable(defect.reason().to_owned()));
        }
        match self.config.key.of(message)? {
            Some(key) => Ok(Some(StoreKey::new(self.config.consumer.clone(), key))),
            None if self.config.missing_key == MissingKey::Process => Ok(None),
            None => Err(Failure::of_kind(
                FailureKind::NoKey,
                format!("no idempotency key: {} is missing or empty", self.config.key),
            )),
        }
    }

    /// A failure for which no handler was called, or could have been.
    pub(super) fn unclaimed(&self, mut failure: Failure) -> Failure {
        failure.set_attempts(u32::from(failure.kind() == FailureKind::Undecodable));
        failure.set_consumer(self.config.consumer.clone());
        failure
    }

    /// The store is known to be away, and the policy says to go on without asking it.
    pub(super) fn is_bypassed(&self) -> bool {
        let known_down = || self.store.poll_available(&mut Context::from_waker(Waker::noop())).is_pending();
        self.config.on_outage == OnOutage::Bypass && known_down()
    }

    /// Handles a message without a claim. A place in the gate it takes all the same: a suspect is alone.
    async fn unprotected<S>(&self, mut inner: S, message: Message) -> Result<Outcome, Failure>
    where
        S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send> + Send,
    {
        if let Some(unparked) = message.extension::<Unparked>() {
            return Err(self.unclaimed(unparked.failure()));
        }
        message.until_ready(&mut inner).await.ok_or_else(handed_back)??;
        let place = self.registry.aside();
        let handle = place.handle();
        message.wait_or_cancelled(handle.enter_gate()).await.ok_or_else(handed_back)?;
        if message.is_cancelled() {
            return Err(handed_back());
        }
        let scope = message.scope().cloned();
        let answer = inner.call(message.with_claim(Some(handle))).await;
        answer.map(Into::into).map_err(|error| {
            Failure::from_error(error).or_handed_back(scope.is_some_and(|scope| scope.is_cancelled()))
        })
    }

    /// Waits until what is inside is ready, and then for a place in the gate.
    async fn turn<S>(
        &self,
        held: &HeldClaim,
        inner: &mut S,
        message: &Message,
        ready: Poll<Result<(), Failure>>,
    ) -> Turn
    where
        S: Service<Message, Error: Into<BoxError>> + Send,
    {
        let ready = match ready {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => message.until_ready(inner).await,
        };
        match ready {
            None => Turn::Over(handed_back()),
            Some(Err(failure)) => Turn::Failed(failure),
            Some(Ok(())) => match message.wait_or_cancelled(held.enter_gate()).await {
                None => Turn::Over(handed_back()),
                Some(Ok(())) => Turn::Come,
                // Lost while the message waited for its turn: it is another one's to run.
                Some(Err(LostClaim)) => Turn::Over(self.lost(held)),
            },
        }
    }

    /// The message killed too many processes: no further call.
    fn given_up(&self, held: HeldClaim) -> Failure {
        let crashes = held.claim().crashes;
        let error = format!("process died {crashes} times while handling this message alone");
        let mut failure = Failure::of_kind(FailureKind::Exhausted, error);
        failure.set_given_up();
        self.uncalled(held, failure)
    }

    /// A failure that stands for no call.
    fn uncalled(&self, mut held: HeldClaim, mut failure: Failure) -> Failure {
        let attempts = held.claim().attempts;
        failure.set_attempts(attempts);
        failure.set_consumer(self.config.consumer.clone());
        held.failed(attempts);
        failure.set_claim(held);
        failure
    }

    fn failed(&self, mut held: HeldClaim, mut failure: Failure) -> Failure {
        held.leave_gate();
        // Dropping the claim hands it back with what had failed before.
        if failure.is_cancelled() {
            return failure;
        }
        let attempts = failure.attempts().unwrap_or_else(|| held.attempts().saturating_add(1));
        failure.set_attempts(attempts);
        failure.set_consumer(self.config.consumer.clone());
        held.failed(attempts);
        failure.set_claim(held);
        failure
    }

    fn recorded(&self, (answer, key): Settled) {
        match answer {
            Ok(resolved) => {
                self.meter.completed(resolved);
                if matches!(resolved, Resolved::Overlapped | Resolved::AlreadyCompleted) {
                    tracing::warn!(
                        ?key,
                        "another process had taken this key over: its handler may have run twice"
                    );
                }
            }
            Err(error) => {
                tracing::error!(?key, error = %chain(&error), "completed, but the store could not record it");
            }
        }
    }

    fn lost(&self, held: &HeldClaim) -> Failure {
        self.meter.lost();
        tracing::warn!(key = ?held.claim().key, "claim ran out or was taken over: the handler was stopped");
        Failure::cancelled("the claim ran out or was taken over while the handler ran")
    }
}

fn resolution_of(outcome: Outcome, held: &HeldClaim) -> Resolution {
    match outcome {
        Outcome::DeadLettered => Resolution::DeadLettered,
        Outcome::Deferred => Resolution::Deferred { attempt: held.attempts().saturating_add(1) },
        Outcome::Processed | Outcome::Duplicate | Outcome::Superseded => Resolution::Completed,
    }
}

pub(super) fn handed_back() -> Failure {
    Failure::cancelled("shutdown or rebalance")
}

impl<S: Clone, D> Clone for Dedup<S, D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: fmt::Debug, D> fmt::Debug for Dedup<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedup").field("inner", &self.inner).finish_non_exhaustive()
    }
}
