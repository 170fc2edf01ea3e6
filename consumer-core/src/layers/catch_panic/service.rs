//! The call behind a net.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower::Service;

use crate::{BoxError, Failure, Message};

/// The service of [`CatchPanicLayer`](super::CatchPanicLayer). As ready as what is inside it.
#[derive(Debug, Clone)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S> CatchPanic<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<Message> for CatchPanic<S>
where
    S: Service<Message>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        // Unwind safety: each delivery runs on its own clone, and a panicked future is not touched again.
        match catch_unwind(AssertUnwindSafe(|| self.inner.call(message))) {
            Ok(call) => CatchPanicFuture { call: Some(call), panicked: None },
            Err(panic) => CatchPanicFuture { call: None, panicked: Some(Panicked::from_payload(panic)) },
        }
    }
}

pin_project! {
    /// The future of [`CatchPanic`].
    ///
    /// # Cancel safety
    /// Dropping it drops the call.
    #[derive(Debug)]
    pub struct CatchPanicFuture<F> {
        // None when the call has panicked.
        #[pin]
        call: Option<F>,
        panicked: Option<Panicked>,
    }
}

impl<F, T, E> Future for CatchPanicFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let panicked = match this.call.as_mut().as_pin_mut() {
            Some(call) => match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
                Ok(poll) => return poll.map(|result| result.map_err(Failure::from_error)),
                Err(panic) => {
                    // What the future holds may panic once more when it is dropped: the first panic tells more.
                    let _ = catch_unwind(AssertUnwindSafe(|| this.call.set(None)));
                    Some(Panicked::from_payload(panic))
                }
            },
            None => this.panicked.take(),
        };
        match panicked {
            Some(panicked) => Poll::Ready(Err(Failure::transient(panicked))),
            // Only a poll after the end comes here; it never resolves.
            None => Poll::Pending,
        }
    }
}

/// A handler panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked(String);

impl Panicked {
    pub(crate) fn from_payload(payload: Box<dyn Any + Send>) -> Self {
        let text = match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => match payload.downcast_ref::<&str>() {
                Some(text) => (*text).to_owned(),
                None => "with a value that is no text".to_owned(),
            },
        };
        Self(text)
    }

    /// The message of the panic.
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}
