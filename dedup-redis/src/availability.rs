//! Whether the store is known to be down.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

#[derive(Debug, Default)]
pub(crate) struct Availability {
    down: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waker>,
    /// What the last trouble was.
    why: Option<String>,
}

impl Availability {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes trouble; whether that is news.
    pub(crate) fn goes_down(&self, why: &str) -> bool {
        let mut state = self.lock();
        state.why = Some(why.to_owned());
        !self.down.swap(true, SeqCst)
    }

    /// Notes that the store answers; whether that is news.
    pub(crate) fn comes_up(&self) -> bool {
        if !self.down.load(SeqCst) {
            return false;
        }
        let mut state = self.lock();
        let news = self.down.swap(false, SeqCst);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waker in waiting {
            waker.wake();
        }
        news
    }

    pub(crate) fn is_known_down(&self) -> bool {
        self.down.load(SeqCst)
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.down.load(SeqCst) {
            return Poll::Ready(());
        }
        let mut state = self.lock();
        // It may have come up while the lock was waited for; then nobody would wake us.
        if !self.down.load(SeqCst) {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The last trouble, in words.
    pub(crate) fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_when_it_comes_up() {
        let availability = Arc::new(Availability::default());
        assert!(availability.goes_down("gone") && !availability.goes_down("still gone"));
        let waiting = [1, 2].map(|_| {
            let availability = availability.clone();
            tokio::spawn(async move { poll_fn(|cx| availability.poll(cx)).await })
        });
        tokio::task::yield_now().await;
        assert!(availability.comes_up() && !availability.comes_up());
        for waiting in waiting {
            waiting.await.unwrap();
        }
        assert_eq!(availability.why().as_deref(), Some("still gone"));
    }
}
