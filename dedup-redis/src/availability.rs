//! Whether the store is known to be down: each pipeline says how it is, and the store is down when none of them works.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

/// How a pipeline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has no connection that works.
    Down,
    /// It serves some keys: a node of the Cluster is missing.
    Impaired,
    /// It serves all keys.
    Well,
}

/// What a pipeline's health changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The store was up and is down now.
    StoreDown,
    /// The store was down and is up now.
    StoreUp,
    /// The store is as it was.
    Pipeline,
}

#[derive(Debug)]
pub(crate) struct Availability {
    down: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pipelines: Vec<Health>,
    waiting: Vec<Waker>,
    /// What the last trouble was.
    why: Option<String>,
}

impl Availability {
    /// The first pipeline is well, the others have no connection yet.
    pub(crate) fn new(pipelines: usize) -> Self {
        let mut pipelines = vec![Health::Down; pipelines];
        pipelines[0] = Health::Well;
        let state = State { pipelines, waiting: Vec::new(), why: None };
        Self { down: AtomicBool::new(false), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a pipeline is now.
    pub(crate) fn set(&self, pipeline: usize, health: Health) -> Change {
        let mut state = self.lock();
        state.pipelines[pipeline] = health;
        let down = state.pipelines.iter().all(|health| *health == Health::Down);
        let was_down = self.down.swap(down, SeqCst);
        if down {
            return if was_down { Change::Pipeline } else { Change::StoreDown };
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waker in waiting {
            waker.wake();
        }
        if was_down { Change::StoreUp } else { Change::Pipeline }
    }

    /// Whether every pipeline serves all keys.
    pub(crate) fn is_all_well(&self) -> bool {
        self.lock().pipelines.iter().all(|health| *health == Health::Well)
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

    /// Notes the last trouble, in words.
    pub(crate) fn because(&self, why: &str) {
        self.lock().why = Some(why.to_owned());
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
        let availability = Arc::new(Availability::new(1));
        assert_eq!(availability.set(0, Health::Down), Change::StoreDown);
        assert_eq!(availability.set(0, Health::Down), Change::Pipeline);
        let waiting = [1, 2].map(|_| {
            let availability = availability.clone();
            tokio::spawn(async move { poll_fn(|cx| availability.poll(cx)).await })
        });
        tokio::task::yield_now().await;
        assert_eq!(availability.set(0, Health::Impaired), Change::StoreUp);
        assert_eq!(availability.set(0, Health::Well), Change::Pipeline);
        for waiting in waiting {
            waiting.await.unwrap();
        }
    }

    #[test]
    fn the_store_is_down_when_no_pipeline_works() {
        let availability = Availability::new(2);
        assert!(!availability.is_all_well());
        availability.set(1, Health::Well);
        assert!(availability.is_all_well());
        assert_eq!(availability.set(0, Health::Down), Change::Pipeline);
        assert_eq!(availability.set(1, Health::Impaired), Change::Pipeline);
        assert_eq!(availability.set(1, Health::Down), Change::StoreDown);
        assert_eq!(availability.set(0, Health::Well), Change::StoreUp);
    }
}
