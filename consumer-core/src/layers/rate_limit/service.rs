//! Waits for a token, then calls.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::Service;

use super::{layer::KeyOf, limiter::Limiter};
use crate::{
    BoxError, Failure, Message, closure,
    scope::{Queued, poll_ready_or_cancelled},
};

pub(super) struct Shared {
    pub(super) limiter: Limiter,
    pub(super) key_of: Option<KeyOf>,
}

/// The service of [`RateLimitLayer`](super::RateLimitLayer). Always ready: it makes what is inside ready within its
/// future.
#[derive(Clone)]
pub struct RateLimit<S> {
    inner: S,
    shared: Option<Arc<Shared>>,
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, shared: Option<Arc<Shared>>) -> Self {
        Self { inner, shared }
    }
}

impl<S: fmt::Debug> fmt::Debug for RateLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S> Service<Message> for RateLimit<S>
where
    S: Service<Message> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = RateLimitFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let state =
            self.shared.as_ref().map_or(State::Ready { queued: None }, |shared| shared.begin(&message));
        RateLimitFuture { inner: self.inner.clone(), message: Some(message), state }
    }
}

pin_project! {
    /// The future of [`RateLimit`]: allocates only when it has to wait.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it takes no token and leaves its place in the queue. A token that was there when the
    /// service was called is spent.
    pub struct RateLimitFuture<S: Service<Message>> {
        inner: S,
        message: Option<Message>,
        #[pin]
        state: State<S::Future>,
    }
}

type Wait = Pin<Box<dyn Future<Output = Option<()>> + Send>>;

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // Resolves to `None` when the message is cancelled.
        Waiting { wait: Wait },
        // The token is taken.
        Ready { queued: Option<Queued> },
        Calling { #[pin] call: F },
        // The message has no key, since the closure panicked.
        Failed { failure: Option<Failure> },
    }
}

impl<S> Future for RateLimitFuture<S>
where
    S: Service<Message>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Waiting { wait } => match ready!(wait.as_mut().poll(cx)) {
                    Some(()) => State::Ready { queued: None },
                    None => {
                        let why = "cancelled while waiting for the rate limit";
                        return Poll::Ready(Err(Failure::cancelled(why)));
                    }
                },
                StateProj::Ready { queued } => {
                    // Only a poll after the end comes without a message; it never resolves.
                    let Some(message) = this.message.as_ref() else { return Poll::Pending };
                    match ready!(poll_ready_or_cancelled(this.inner, message, queued, cx)) {
                        Some(Ok(())) => match this.message.take() {
                            Some(message) => State::Calling { call: this.inner.call(message) },
                            None => return Poll::Pending,
                        },
                        Some(Err(error)) => return Poll::Ready(Err(Failure::from_error(error))),
                        None => {
                            let why = "cancelled while waiting for its turn";
                            return Poll::Ready(Err(Failure::cancelled(why)));
                        }
                    }
                }
                // Only a poll after the end finds none; it never resolves.
                StateProj::Failed { failure } => {
                    return failure.take().map_or(Poll::Pending, |failure| Poll::Ready(Err(failure)));
                }
                StateProj::Calling { call } => {
                    return call.poll(cx).map(|result| result.map_err(Failure::from_error));
                }
            };
            this.state.set(next);
        }
    }
}

impl Shared {
    /// Takes a token at once, or else queues for one at the first poll.
    fn begin<F>(self: &Arc<Self>, message: &Message) -> State<F> {
        let key = match &self.key_of {
            None => 0,
            Some(key_of) => match closure::call("the key of the rate limit", || key_of(message)) {
                Ok(key) => key,
                Err(failure) => return State::Failed { failure: Some(failure) },
            },
        };
        if self.limiter.try_take(key) {
            return State::Ready { queued: None };
        }
        let (shared, message) = (self.clone(), message.clone());
        State::Waiting {
            wait: Box::pin(async move { message.wait_or_cancelled(shared.limiter.take(key)).await }),
        }
    }
}

impl<S: Service<Message>> fmt::Debug for RateLimitFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitFuture").finish_non_exhaustive()
    }
}
