//! The services made from functions.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;

use super::{Handler, HandlerShape, IntoResult};
use crate::{Failure, Message, Outcome};

/// Makes a handler from an async function. See the [module](super) for arguments and results.
pub fn handler<F: HandlerShape<M>, M>(function: F) -> HandlerFn<F, M> {
    HandlerFn { function, arguments: PhantomData }
}

/// A handler made from a function, without state.
#[must_use = "a handler does nothing until a consumer runs it"]
pub struct HandlerFn<F, M> {
    function: F,
    arguments: PhantomData<fn() -> M>,
}

impl<F, M> HandlerFn<F, M> {
    /// Gives the function its state, which [`State`](super::State) arguments take.
    pub fn with_state<S>(self, state: S) -> HandlerService<F, M, S>
    where
        F: Handler<M, S>,
    {
        HandlerService { function: self.function, state, arguments: PhantomData }
    }
}

/// A handler made from a function, with its state.
#[must_use = "a handler does nothing until a consumer runs it"]
pub struct HandlerService<F, M, S> {
    function: F,
    state: S,
    arguments: PhantomData<fn() -> M>,
}

impl<F: Clone, M> Clone for HandlerFn<F, M> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), arguments: PhantomData }
    }
}

impl<F: Clone, M, S: Clone> Clone for HandlerService<F, M, S> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), state: self.state.clone(), arguments: PhantomData }
    }
}

impl<F, M> fmt::Debug for HandlerFn<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerFn({})", std::any::type_name::<F>())
    }
}

impl<F, M, S> fmt::Debug for HandlerService<F, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerService({})", std::any::type_name::<F>())
    }
}

impl<F: Handler<M, ()>, M> Service<Message> for HandlerFn<F, M> {
    type Response = Outcome;
    type Error = Failure;
    type Future = F::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> F::Future {
        self.function.call(message, &())
    }
}

impl<F: Handler<M, S>, M, S> Service<Message> for HandlerService<F, M, S> {
    type Response = Outcome;
    type Error = Failure;
    type Future = F::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> F::Future {
        self.function.call(message, &self.state)
    }
}

pin_project! {
    /// The call of a function, or what made it impossible.
    ///
    /// # Cancel safety
    /// Dropping it drops the function's future and cancels its token.
    pub struct HandlerFuture<F> {
        // None when an argument could not be taken.
        #[pin]
        running: Option<F>,
        failed: Option<Failure>,
        token: Option<DropGuard>,
    }
}

impl<F> HandlerFuture<F> {
    pub(super) fn running(future: F, token: Option<CancellationToken>) -> Self {
        Self { running: Some(future), failed: None, token: token.map(CancellationToken::drop_guard) }
    }

    pub(super) fn failed(failure: Failure) -> Self {
        Self { running: None, failed: Some(failure), token: None }
    }
}

impl<F> Future for HandlerFuture<F>
where
    F: Future,
    F::Output: IntoResult,
{
    type Output = Result<Outcome, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.running.as_pin_mut() {
            Some(future) => future.poll(cx).map(|output| {
                *this.token = None;
                output.into_result()
            }),
            None => match this.failed.take() {
                Some(failure) => Poll::Ready(Err(failure)),
                // Only a poll after the end comes here; it never resolves.
                None => Poll::Pending,
            },
        }
    }
}

impl<F> fmt::Debug for HandlerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFuture").field("failed", &self.failed).finish_non_exhaustive()
    }
}
