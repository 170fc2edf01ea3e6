//! Whether what a layer publishes to is away: then the layer is not ready, and the source pauses.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// It is away while at least one publish to it is failing.
#[derive(Debug, Default)]
pub(crate) struct Target(Arc<Failing>);

#[derive(Debug, Default)]
struct Failing {
    /// Falls only with `waiting` locked, so that none who waits is forgotten.
    publishes: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

/// One publish that is failing.
pub(crate) struct Away(Arc<Failing>);

impl Failing {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target {
    pub(crate) fn poll_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.publishes.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting();
        if self.0.publishes.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) fn away(&self) -> Away {
        self.0.publishes.fetch_add(1, Ordering::AcqRel);
        Away(self.0.clone())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if self.0.publishes.fetch_sub(1, Ordering::AcqRel) == 1 {
            let waiting = mem::take(&mut *waiting);
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}
