//! Whether the database can be reached, as far as is known.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

#[derive(Default)]
pub(super) struct Outage {
    is_down: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Outage {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that is news.
    pub(super) fn begins(&self) -> bool {
        !self.is_down.swap(true, Ordering::AcqRel)
    }

    pub(super) fn ends(&self) {
        let mut waiting = self.waiting();
        self.is_down.store(false, Ordering::Release);
        std::mem::take(&mut *waiting).into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !self.is_down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
