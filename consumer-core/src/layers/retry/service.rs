//! The loop over the attempts of one message.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use super::{
    layer::PermanentIf,
    policy::{Schedule, counts},
};
use crate::{
    BoxError, Failure, FailureError, Message, WallClock, closure,
    scope::{Queued, poll_ready_or_cancelled},
};

pub(super) struct Policy {
    pub(super) schedule: Schedule,
    pub(super) permanent_if: Option<PermanentIf>,
    pub(super) clock: Arc<dyn WallClock>,
    #[cfg(feature = "metrics")]
    pub(super) attempts: Option<crate::layers::metrics::Attempts>,
}

/// The service of [`RetryLayer`](super::RetryLayer). Always ready: it makes what is inside ready within its future.
#[derive(Clone)]
pub struct Retry<S> {
    inner: S,
    policy: Arc<Policy>,
}

impl<S> Retry<S> {
    pub(super) fn new(inner: S, policy: Policy) -> Self {
        Self { inner, policy: Arc::new(policy) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Retry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("inner", &self.inner)
            .field("schedule", &self.policy.schedule)
            .finish_non_exhaustive()
    }
}

impl<S> Service<Message> for Retry<S>
where
    S: Service<Message> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = RetryFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        RetryFuture {
            inner: self.inner.clone(),
            policy: self.policy.clone(),
            attempt: message.attempt(),
            message,
            // Reading the clock is worth avoiding where nobody asks for the time.
            started: self.policy.schedule.max_elapsed.map(|_| Instant::now()),
            failed: None,
            state: State::Ready { queued: None },
        }
    }
}

pin_project! {
    /// The future of [`Retry`]: allocates nothing until a call has failed.
    ///
    /// # Cancel safety
    /// Dropping it drops the call or the wait; failed calls so far are known to the claim of the message.
    pub struct RetryFuture<S: Service<Message>> {
        inner: S,
        policy: Arc<Policy>,
        message: Message,
        attempt: u32,
        started: Option<Instant>,
        failed: Option<Failed>,
        #[pin]
        state: State<S::Future>,
    }
}

/// What has failed so far.
struct Failed {
    first_at: SystemTime,
    last: Failure,
}

type Wait = Pin<Box<dyn Future<Output = Option<()>> + Send>>;

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // The inner service is to be made ready for the attempt.
        Ready { queued: Option<Queued> },
        Calling { #[pin] call: F },
        // Resolves to `None` when the message is cancelled.
        Waiting { wait: Wait },
    }
}

impl<S> Future for RetryFuture<S>
where
    S: Service<Message>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Ready { queued } => {
                    match ready!(poll_ready_or_cancelled(this.inner, this.message, queued, cx)) {
                        Some(Ok(())) => {
                            let message = this.message.clone().with_attempt(*this.attempt);
                            let call = this.inner.call(message);
                            this.state.set(State::Calling { call });
                            continue;
                        }
                        Some(Err(error)) => Err(error),
                        None => {
                            let failed = this.failed.take();
                            return Poll::Ready(Err(handed_back(*this.attempt - 1, failed)));
                        }
                    }
                }
                StateProj::Calling { call } => ready!(call.poll(cx)),
                StateProj::Waiting { wait } => match ready!(wait.as_mut().poll(cx)) {
                    Some(()) => {
                        *this.attempt = this.attempt.saturating_add(1);
                        this.message.count_retry();
                        this.state.set(State::Ready { queued: None });
                        continue;
                    }
                    None => {
                        let failed = this.failed.take();
                        return Poll::Ready(Err(handed_back(*this.attempt, failed)));
                    }
                },
            };
            this.policy.count(result.is_ok(), this.message);
            let error = match result {
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(error) => error,
            };
            // A failed call holds nothing of the inner service while the next one is waited for.
            this.state.set(State::Ready { queued: None });
            match this.policy.after(error.into(), this.message, *this.attempt, this.started, this.failed) {
                Ok(wait) => {
                    let message = this.message.clone();
                    let wait =
                        Box::pin(async move { message.wait_or_cancelled(tokio::time::sleep(wait)).await });
                    this.state.set(State::Waiting { wait });
                }
                Err(failure) => return Poll::Ready(Err(failure)),
            }
        }
    }
}

impl Policy {
    /// Under the name that was set, else under that of the dedup layer.
    fn count(&self, ok: bool, message: &Message) {
        #[cfg(feature = "metrics")]
        if let Some(attempts) = &self.attempts {
            return attempts.count(ok);
        }
        if let Some(claim) = message.claim() {
            claim.count_call(ok);
        }
    }

    /// Counts a failed call and says how long to wait for the next one, or gives back the failure that leaves.
    #[cold]
    fn after(
        &self,
        error: BoxError,
        message: &Message,
        attempt: u32,
        started: &Option<Instant>,
        failed: &mut Option<Failed>,
    ) -> Result<Duration, Failure> {
        let mut failure = self.classify(error).or_handed_back(message.is_cancelled());
        let first_at = failed.as_ref().map(|failed| failed.first_at);
        if !counts(failure.kind()) {
            failure.set_attempts(attempt - 1);
            if let Some(at) = first_at {
                failure.set_first_failed_at(at);
            }
            return Err(failure);
        }
        let first_at = first_at.or(failure.first_failed_at()).unwrap_or_else(|| self.clock.now());
        failure.set_attempts(attempt);
        failure.set_first_failed_at(first_at);
        if let Some(claim) = message.claim() {
            claim.failed_calls(attempt);
        }
        let elapsed = started.map_or(Duration::ZERO, |at| at.elapsed());
        let random = RandomState::new().hash_one(attempt);
        match self.schedule.next(&failure, attempt, elapsed, random) {
            Some(wait) => {
                tracing::debug!(attempt, ?wait, error = %failure.chain(), "attempt failed, trying again");
                // Kept until the next call, it would make a dedup layer inside wait for itself.
                drop(failure.take_claim());
                *failed = Some(Failed { first_at, last: failure });
                Ok(wait)
            }
            None => Err(failure),
        }
    }

    fn classify(&self, error: BoxError) -> Failure {
        let failure = Failure::from_error(error);
        let Some(test) = self.permanent_if.as_ref().filter(|_| failure.is_transient()) else {
            return failure;
        };
        match closure::call("`permanent_if`", || test(&failure)) {
            Ok(false) => failure,
            Ok(true) => failure.into_permanent(),
            Err(panicked) => {
                tracing::error!(error = %failure.chain(), because = %panicked.cause(), "failure counts as permanent");
                failure.into_permanent()
            }
        }
    }
}

/// The message was cancelled while it waited for its next call, after so many that have failed.
fn handed_back(attempts: u32, failed: Option<Failed>) -> Failure {
    let (first_at, last) = match failed {
        Some(failed) => (Some(failed.first_at), Some(failed.last.into_error())),
        None => (None, None),
    };
    let mut failure = Failure::cancelled(CutShort { attempts, last });
    failure.set_attempts(attempts);
    if let Some(at) = first_at {
        failure.set_first_failed_at(at);
    }
    failure
}

/// Why a message was handed back: its wait for a call was cut short.
#[derive(Debug)]
struct CutShort {
    attempts: u32,
    last: Option<FailureError>,
}

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempts {
            0 => f.write_str("cancelled while waiting for its turn"),
            attempts => write!(f, "cancelled while waiting to try again after attempt {attempts}"),
        }
    }
}

impl std::error::Error for CutShort {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.last.as_ref().map(|last| last as _)
    }
}

impl<S: Service<Message>> fmt::Debug for RetryFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}
