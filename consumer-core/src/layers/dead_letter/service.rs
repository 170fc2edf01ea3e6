//! The dead-letter layer at work on one message.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower::Service;

use super::{DeadLetterLayer, Reason, provenance};
#[cfg(feature = "metrics")]
use crate::layers::metrics::names;
use crate::{
    BoxError, Failure, Message, Outcome, Outgoing, PublishError, Publisher,
    dedup::{HeldClaim, Resolution},
    failure::chain,
    layers::{
        after::{After, Dealing, DealsWith},
        target::Target,
    },
    message::wire,
    scope::answered,
};

/// The service that [`DeadLetterLayer`] makes. It is ready when its inner service is, unless its target is away.
pub struct DeadLetter<S, P> {
    inner: S,
    shared: Arc<Shared<P>>,
}

/// What its calls share.
#[derive(Debug)]
pub struct Shared<P> {
    pub(super) config: DeadLetterLayer<P>,
    pub(super) target: Target,
}

impl<S, P> DeadLetter<S, P> {
    pub(super) fn new(inner: S, shared: Arc<Shared<P>>) -> Self {
        Self { inner, shared }
    }
}

impl<S, P> Service<Message> for DeadLetter<S, P>
where
    S: Service<Message>,
    S::Response: Into<Outcome>,
    S::Error: Into<BoxError>,
    P: Publisher,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = After<S::Future, Shared<P>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        ready!(self.shared.target.poll_up(cx));
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        After::call(self.inner.call(message.clone()), self.shared.clone(), message)
    }
}

impl<P: Publisher> DealsWith for Shared<P> {
    fn deal_with(self: Arc<Self>, message: Message, failure: Failure) -> Result<Dealing, Failure> {
        if failure.is_cancelled() {
            return Err(failure);
        }
        Ok(Box::pin(self.set_aside(message, failure)))
    }
}

impl<P: Publisher> Shared<P> {
    /// Publishes the dead letter, then records it. The claim stays with this future until then: dropped before the
    /// confirm, it is released as failed; dropped after it, the record is on its way.
    async fn set_aside(self: Arc<Self>, message: Message, mut failure: Failure) -> Result<Outcome, Failure> {
        let claim = failure.take_claim();
        let outgoing = self.dead_letter(&message, &failure, claim.as_ref());
        let target = self.publish(outgoing, &message).await?;
        tracing::warn!(
            origin = %message.origin(),
            target_name = %target,
            reason = %Reason::of(&failure),
            error = %failure.cause(),
            "message was dead-lettered"
        );
        if let Some(claim) = claim {
            let _ =
                answered(message.scope(), claim.resolve_failure(Resolution::DeadLettered, Duration::ZERO))
                    .await;
        }
        // Only now: a message that came again before would find its key free, and those behind it gone on.
        if let Some(seat) = failure.seat() {
            seat.leave(&message).await?;
        }
        Ok(Outcome::DeadLettered)
    }

    fn dead_letter(&self, message: &Message, failure: &Failure, claim: Option<&HeldClaim>) -> Outgoing {
        let target = failure.dead_letter_target().map_or_else(|| self.config.target.clone(), Arc::from);
        let consumer = failure.consumer().or(self.config.consumer.as_ref()).map(|name| &**name);
        let crashes = claim.map_or(0, |claim| claim.claim().crashes);
        let headers = provenance::headers(message, failure, crashes, consumer, self.config.clock.now());
        Outgoing::copy(target, message.clone()).remove_prefix(wire::DEAD_LETTER_PREFIX).set_all(&headers)
    }

    /// Repeats the publish until it is confirmed, and tells where to.
    async fn publish(&self, mut outgoing: Outgoing, message: &Message) -> Result<String, Failure> {
        let mut wait = self.config.first_wait;
        let mut away = None;
        loop {
            let Err(error) = self.config.publisher.publish(outgoing.clone()).await else {
                return Ok(outgoing.target().to_owned());
            };
            let is_own = outgoing.target() == &*self.config.target;
            if error.is_unroutable() && !is_own {
                tracing::warn!(
                    origin = %message.origin(),
                    target_name = outgoing.target(),
                    instead = &*self.config.target,
                    error = %chain(&error),
                    "the target that the failure names does not exist"
                );
                outgoing = outgoing.retarget(self.config.target.clone());
                continue;
            }
            if error.is_too_large() {
                if !outgoing.changes().contains(wire::DEAD_LETTER_ERROR) {
                    drop(away);
                    return Err(hold_unsendable(&outgoing, message, &error).await);
                }
                tracing::warn!(origin = %message.origin(), "dead letter is too large: leaving out its error text");
                outgoing = outgoing.unset(wire::DEAD_LETTER_ERROR);
                continue;
            }
            if is_own {
                away.get_or_insert_with(|| self.target.away());
            }
            #[cfg(feature = "metrics")]
            count(names::DEAD_LETTER_PUBLISH_FAILURES, &outgoing);
            tracing::error!(
                origin = %message.origin(),
                target_name = outgoing.target(),
                error = %chain(&error),
                "dead letter could not be published: trying again"
            );
            let slept = message.wait_or_cancelled(tokio::time::sleep(wait)).await;
            slept.ok_or_else(|| {
                Failure::cancelled("handed back while its dead letter waited for the target")
            })?;
            wait = (wait * 2).min(self.config.longest_wait);
        }
    }
}

/// A dead letter that fits nowhere stays unsettled: losing it would be worse than holding it. The source goes on.
async fn hold_unsendable(outgoing: &Outgoing, message: &Message, error: &PublishError) -> Failure {
    tracing::error!(
        origin = %message.origin(),
        target_name = outgoing.target(),
        error = %chain(error),
        "dead letter is too large for its target even without its error text: the message stays unsettled; \
         raise the target's limit and restart"
    );
    #[cfg(feature = "metrics")]
    count(names::DEAD_LETTER_STUCK, outgoing);
    message.wait_or_cancelled(std::future::pending::<()>()).await;
    Failure::cancelled("handed back: its dead letter is too large for the target")
}

#[cfg(feature = "metrics")]
fn count(name: &'static str, outgoing: &Outgoing) {
    let consumer = outgoing.changes().get_str(wire::DEAD_LETTER_CONSUMER).unwrap_or_default().to_owned();
    metrics::counter!(name, names::CONSUMER => consumer).increment(1);
}

impl<S: Clone, P> Clone for DeadLetter<S, P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: fmt::Debug, P> fmt::Debug for DeadLetter<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter").field("inner", &self.inner).finish_non_exhaustive()
    }
}
