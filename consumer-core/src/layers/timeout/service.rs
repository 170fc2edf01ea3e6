//! The call against the clock.

use std::{
    fmt,
    future::Future,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::Service;

use crate::{BoxError, Failure, Message};

/// The service of [`TimeoutLayer`](super::TimeoutLayer). As ready as what is inside it.
#[derive(Debug, Clone)]
pub struct Timeout<S> {
    inner: S,
    timeout: Duration,
}

impl<S> Timeout<S> {
    pub(super) fn new(inner: S, timeout: Duration) -> Self {
        Self { inner, timeout }
    }
}

impl<S> Service<Message> for Timeout<S>
where
    S: Service<Message>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        TimeoutFuture { call: Some(self.inner.call(message)), sleep: None, timeout: self.timeout }
    }
}

pin_project! {
    /// The future of [`Timeout`].
    ///
    /// # Cancel safety
    /// Dropping it drops the call.
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        // None once timed out: the call is dropped before anybody hears of it.
        #[pin]
        call: Option<F>,
        // Made at the first pending poll: a timer costs more than all layers together, in time and in place.
        sleep: Option<Pin<Box<Sleep>>>,
        timeout: Duration,
    }
}

impl<F, T, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(call) = this.call.as_mut().as_pin_mut()
            && let Poll::Ready(result) = call.poll(cx)
        {
            return Poll::Ready(result.map_err(Failure::from_error));
        }
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep(*this.timeout)));
        ready!(sleep.as_mut().poll(cx));
        // What panics as it is dropped has not succeeded either, and is tried again like all else.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| this.call.set(None)));
        Poll::Ready(Err(Failure::transient(TimedOut(*this.timeout))))
    }
}

/// A call had no result in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedOut(Duration);

impl TimedOut {
    /// The timeout.
    pub fn after(&self) -> Duration {
        self.0
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no result after {:?}", self.0)
    }
}

impl std::error::Error for TimedOut {}
