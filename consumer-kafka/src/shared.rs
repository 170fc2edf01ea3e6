//! What the source and its thread share: a bounded buffer, control events, and requests to the thread.

use std::{
    mem,
    sync::{Arc, OnceLock, PoisonError},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use consumer_core::{Message, Tag};

use crate::{
    error::KafkaError,
    partition::Partition,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        thread::{self, Thread},
    },
};

/// The buffer between the thread and the runtime is full with so many messages or so many bytes …
const HIGH: (usize, usize) = (2048, 8 << 20);
/// … and is filled again when it has come down to this.
const LOW: (usize, usize) = (1024, 4 << 20);

#[derive(Debug)]
pub(crate) enum Control {
    Assigned(Arc<Partition>),
    Closing {
        partition: Arc<Partition>,
        within: Duration,
    },
    Connected,
    Disconnected,
    /// So much was acked in a partition that has gone, and will not be committed.
    Unsettled {
        scope: u64,
        messages: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) tag: Tag,
    pub(crate) message: Message,
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There are control events or a failure.
    news: AtomicBool,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// The thread sleeps until the buffer has come down.
    waiting: AtomicBool,
    closing: AtomicBool,
    flush_wanted: AtomicU64,
    flush_done: AtomicU64,
    thread: OnceLock<Thread>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) controls: Vec<Control>,
    pub(crate) queue: Vec<Queued>,
    failure: Option<String>,
    waker: Option<Waker>,
    flush_done: u64,
    flush_failure: Option<String>,
    /// For the flush that is answered next, and not for one that nobody asks any more.
    lost: Option<String>,
    flush_waker: Option<Waker>,
    closed: Option<Result<(), String>>,
}

impl State {
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    pub(crate) fn register(&mut self, cx: &Context<'_>) {
        register(&mut self.waker, cx);
    }

    pub(crate) fn register_flush(&mut self, cx: &Context<'_>) {
        register(&mut self.flush_waker, cx);
    }

    /// The outcome of a flush, once it is there.
    pub(crate) fn flushed(&mut self, ticket: u64) -> Option<Result<(), String>> {
        if self.flush_done >= ticket {
            let (lost, failure) = (self.lost.take(), self.flush_failure.take());
            return Some(lost.or(failure).map_or(Ok(()), Err));
        }
        match (&self.failure, &self.closed) {
            (Some(failure), _) => Some(Err(failure.clone())),
            (None, Some(closed)) => Some(closed.clone()),
            (None, None) => None,
        }
    }

    pub(crate) fn closed(&self) -> Option<Result<(), String>> {
        self.closed.clone()
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The source's side.

    pub(crate) fn set_thread(&self, thread: Thread) {
        // Only `start` calls this, once.
        let _ = self.thread.set(thread);
    }

    pub(crate) fn wake_thread(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// Control events are taken under the lock.
    pub(crate) fn seen(&self, _: &MutexGuard<'_, State>) {
        self.news.store(false, Ordering::Release);
    }

    /// Messages have left the buffer.
    pub(crate) fn taken(&self, messages: usize, bytes: usize) {
        if messages == 0 {
            return;
        }
        self.messages.fetch_sub(messages, Ordering::SeqCst);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) && self.is_low() {
            self.wake_thread();
        }
    }

    pub(crate) fn request_flush(&self) -> u64 {
        let ticket = self.flush_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake_thread();
        ticket
    }

    pub(crate) fn request_close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake_thread();
    }

    pub(crate) fn buffered(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    // The thread's side.

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(crate) fn flush_wanted(&self) -> u64 {
        self.flush_wanted.load(Ordering::SeqCst)
    }

    pub(crate) fn flush_done(&self) -> u64 {
        self.flush_done.load(Ordering::Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.messages.load(Ordering::SeqCst) >= HIGH.0 || self.bytes.load(Ordering::SeqCst) >= HIGH.1
    }

    pub(crate) fn is_low(&self) -> bool {
        self.messages.load(Ordering::SeqCst) <= LOW.0 && self.bytes.load(Ordering::SeqCst) <= LOW.1
    }

    /// Sleeps until the buffer has come down or the source asks for something, `limit` at most.
    pub(crate) fn wait_for_room(&self, limit: Duration) {
        self.waiting.store(true, Ordering::SeqCst);
        // Between the last look and the flag the source may have come by without waking us.
        if !self.is_low() {
            thread::park_timeout(limit);
        }
        self.waiting.store(false, Ordering::SeqCst);
    }

    /// Sleeps until nothing runs in these partitions any more, `within` at most.
    pub(crate) fn wait_for_release(&self, closing: &[Arc<Partition>], within: Duration) {
        let deadline = Instant::now() + within;
        while !closing.iter().all(|partition| partition.is_released()) {
            // A runtime that waits for the close, or for a flush, has settled what it is going to.
            let leaving = self.is_closing() || self.flush_wanted() != self.flush_done();
            let left = deadline.saturating_duration_since(Instant::now());
            if leaving || left.is_zero() {
                break;
            }
            thread::park_timeout(left.min(Duration::from_millis(50)));
        }
    }

    pub(crate) fn push(&self, batch: &mut Vec<Queued>) {
        if batch.is_empty() {
            return;
        }
        self.messages.fetch_add(batch.len(), Ordering::SeqCst);
        self.bytes.fetch_add(batch.iter().map(|queued| queued.bytes).sum(), Ordering::SeqCst);
        let waker = {
            let mut state = self.lock();
            state.queue.append(batch);
            state.waker.take()
        };
        wake(waker);
    }

    pub(crate) fn control(&self, control: Control) {
        let waker = {
            let mut state = self.lock();
            state.controls.push(control);
            self.news.store(true, Ordering::Release);
            state.waker.take()
        };
        wake(waker);
    }

    /// The source cannot go on.
    pub(crate) fn fail(&self, error: &KafkaError) {
        let wakers = {
            let mut state = self.lock();
            state.failure.get_or_insert(error.to_string());
            self.news.store(true, Ordering::Release);
            [state.waker.take(), state.flush_waker.take()]
        };
        wakers.into_iter().for_each(wake);
    }

    /// Something that was acked will not be committed: the next flush says so.
    pub(crate) fn lost(&self, why: String) {
        self.lock().lost = Some(why);
    }

    pub(crate) fn flush_answered(&self, ticket: u64, outcome: Result<(), String>) {
        let waker = {
            let mut state = self.lock();
            state.flush_done = ticket;
            self.flush_done.store(ticket, Ordering::Relaxed);
            state.flush_failure = outcome.err();
            state.flush_waker.take()
        };
        wake(waker);
    }

    pub(crate) fn closed(&self, outcome: Result<(), String>) {
        let wakers = {
            let mut state = self.lock();
            state.closed = Some(outcome);
            [mem::take(&mut state.waker), mem::take(&mut state.flush_waker)]
        };
        wakers.into_iter().for_each(wake);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_revocation_does_not_wait_for_a_runtime_that_waits_for_a_flush_already() {
        let shared: Arc<Shared> = Arc::default();
        shared.request_flush();
        let (done, revoked) = mpsc::channel();
        let revoke = move || {
            shared.wait_for_release(&[Partition::new("t".into(), 0)], Duration::from_secs(3600));
            done.send(())
        };
        let revoking = thread::spawn(revoke);
        revoked.recv_timeout(Duration::from_secs(30)).expect("it waits for what runs");
        revoking.join().unwrap().unwrap();
    }
}
