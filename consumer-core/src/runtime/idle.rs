//! When nothing comes any more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Measures how long nothing came. The time runs only while something could come.
pub(super) struct Idle {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, sleep: None }
    }

    /// Something came, or nothing can come: the time starts anew.
    pub(super) fn reset(&mut self) {
        if let (Some(limit), Some(sleep)) = (self.limit, &mut self.sleep) {
            sleep.as_mut().reset(Instant::now() + limit);
        }
    }

    /// Ready when nothing came for the whole time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        sleep.as_mut().poll(cx)
    }
}
