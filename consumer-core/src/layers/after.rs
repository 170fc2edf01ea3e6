//! The future of the layers that deal with what failed inside them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{BoxError, Failure, Message, Outcome};

/// What a layer does about a failure.
pub(crate) type Dealing = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

/// A layer that deals with failures, as its calls share it.
pub(crate) trait DealsWith: Send + Sync + 'static {
    /// # Errors
    /// With the failure, where the layer has nothing to do with it.
    fn deal_with(self: Arc<Self>, message: Message, failure: Failure) -> Result<Dealing, Failure>;
}

pin_project! {
    /// The future of a layer that deals with failures. Without one it costs no allocation.
    #[must_use = "futures do nothing unless polled"]
    pub struct After<F, L> {
        #[pin]
        state: State<F>,
        layer: Option<(Arc<L>, Message)>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Handling { #[pin] inner: F },
        Dealing { dealing: Dealing },
    }
}

impl<F, L> After<F, L> {
    /// Waits for the call of the message inside, and lets the layer deal with its failure.
    pub(crate) fn call(inner: F, layer: Arc<L>, message: Message) -> Self {
        Self { state: State::Handling { inner }, layer: Some((layer, message)) }
    }

    /// The layer has taken the whole way of the message upon itself.
    pub(crate) fn whole(dealing: Dealing) -> Self {
        Self { state: State::Dealing { dealing }, layer: None }
    }
}

impl<F, L, R, E> Future for After<F, L>
where
    F: Future<Output = Result<R, E>>,
    R: Into<Outcome>,
    E: Into<BoxError>,
    L: DealsWith,
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
                        let Some((layer, message)) = this.layer.take() else {
                            return Poll::Ready(Err(failure));
                        };
                        let failure = failure.or_handed_back(message.is_cancelled());
                        match layer.deal_with(message, failure) {
                            Ok(dealing) => this.state.set(State::Dealing { dealing }),
                            Err(failure) => return Poll::Ready(Err(failure)),
                        }
                    }
                },
                StateProjection::Dealing { dealing } => return dealing.as_mut().poll(cx),
            }
        }
    }
}

impl<F, L> fmt::Debug for After<F, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("After")
    }
}
