//! Whether the database can be written, as far as is known: what waits for it is woken when it is back.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

#[derive(Default)]
pub(crate) struct Availability {
    down: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Availability {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that is news.
    pub(crate) fn set(&self, up: bool) -> bool {
        let mut waiting = self.waiting();
        let was_up = !self.down.swap(!up, Ordering::AcqRel);
        if up {
            std::mem::take(&mut *waiting).into_iter().for_each(Waker::wake);
        }
        was_up != up
    }

    pub(crate) fn poll_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !self.down.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
