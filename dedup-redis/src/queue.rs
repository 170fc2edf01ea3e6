//! What waits to be sent, and what `flush` waits for.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::operation::Operation;

/// First in, first out, between the callers and the pipelines. Unbounded: what is in it is bounded by what the callers
/// hold.
#[derive(Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// One permit for each time the queue got something.
    filled: Notify,
    /// For the task that watches the deadlines of what waits.
    pub(crate) watched: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Operation>,
    /// What could not be served, until the watcher looks again: it must not stand in the way of the others.
    later: Vec<Operation>,
    generations: Generations,
    watcher_sleeps: bool,
    /// No handle is left: nothing more will come.
    closed: bool,
    /// The driver has ended with its runtime: nothing will be sent any more.
    dead: bool,
}

/// Counts the operations that are not answered, by the flush that comes after them.
#[derive(Default)]
struct Generations {
    first: u64,
    open: VecDeque<Generation>,
}

#[derive(Default)]
struct Generation {
    unanswered: usize,
    flushed: Vec<oneshot::Sender<()>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues an operation. Once the driver has ended, it is dropped, and its answer with it.
    pub(crate) fn push(&self, mut operation: Operation) {
        let mut inner = self.lock();
        if inner.dead {
            return;
        }
        operation.generation = inner.generations.enter();
        let was_empty = inner.waiting.is_empty();
        inner.waiting.push_back(operation);
        let watcher_sleeps = std::mem::take(&mut inner.watcher_sleeps);
        drop(inner);
        if was_empty {
            self.filled.notify_one();
        }
        if watcher_sleeps {
            self.watched.notify_one();
        }
    }

    /// Puts operations back in front, in their order.
    pub(crate) fn push_back_again(&self, operations: impl DoubleEndedIterator<Item = Operation>) {
        let mut inner = self.lock();
        if inner.dead {
            return;
        }
        for operation in operations.rev() {
            inner.waiting.push_front(operation);
        }
        let filled = !inner.waiting.is_empty();
        let watcher_sleeps = filled && std::mem::take(&mut inner.watcher_sleeps);
        drop(inner);
        if filled {
            self.filled.notify_one();
        }
        if watcher_sleeps {
            self.watched.notify_one();
        }
    }

    /// Keeps operations aside until the next look of the watcher.
    pub(crate) fn push_later(&self, operations: Vec<Operation>) {
        let mut inner = self.lock();
        if inner.dead || operations.is_empty() {
            return;
        }
        inner.later.extend(operations);
        let watcher_sleeps = std::mem::take(&mut inner.watcher_sleeps);
        drop(inner);
        if watcher_sleeps {
            self.watched.notify_one();
        }
    }

    /// For whoever has given up a [`take`](Self::take): it may have been the one that was notified.
    pub(crate) fn nudge(&self) {
        let inner = self.lock();
        if !inner.waiting.is_empty() || inner.is_finished() {
            self.filled.notify_one();
        }
    }

    /// Waits until something is enqueued and takes up to `limit` of it; false when nothing more will come.
    pub(crate) async fn take(&self, limit: usize, into: &mut Vec<Operation>) -> bool {
        loop {
            let filled = self.filled.notified();
            {
                let mut inner = self.lock();
                let count = inner.waiting.len().min(limit);
                if count > 0 {
                    into.extend(inner.waiting.drain(..count));
                    let more = !inner.waiting.is_empty();
                    drop(inner);
                    if more {
                        self.filled.notify_one();
                    }
                    return true;
                }
                if inner.is_finished() {
                    drop(inner);
                    // The next one waits for the same.
                    self.filled.notify_one();
                    return false;
                }
            }
            filled.await;
            // Whoever is ready to enqueue does so first: a bigger batch without any wait.
            tokio::task::yield_now().await;
        }
    }

    /// Takes out what has waited too long, and lets what was kept aside be taken again; None when nothing waits and the
    /// watcher may sleep until it is notified.
    pub(crate) fn take_over_due(&self, now: Instant) -> Option<Vec<Operation>> {
        let mut inner = self.lock();
        let later = std::mem::take(&mut inner.later);
        if !later.is_empty() {
            inner.waiting.extend(later);
            self.filled.notify_one();
        }
        if inner.waiting.is_empty() {
            inner.watcher_sleeps = true;
            return None;
        }
        let mut due = Vec::new();
        if inner.waiting.iter().any(|operation| operation.is_over(now)) {
            let (over, waiting) =
                std::mem::take(&mut inner.waiting).into_iter().partition::<Vec<_>, _>(|op| op.is_over(now));
            inner.waiting = waiting.into();
            due = over;
        }
        Some(due)
    }

    /// These have been answered.
    pub(crate) fn answered<'a>(&self, operations: impl Iterator<Item = &'a Operation>) {
        let mut inner = self.lock();
        for operation in operations {
            inner.generations.leave(operation.generation);
        }
        let flushed = inner.generations.settle();
        let finished = inner.is_finished();
        drop(inner);
        for flushed in flushed {
            let _ = flushed.send(());
        }
        if finished {
            self.filled.notify_one();
            self.watched.notify_one();
        }
    }

    /// Resolves when everything enqueued before this call has been answered; with an error if the driver has ended.
    pub(crate) fn flush(&self) -> oneshot::Receiver<()> {
        let (flushed, wait) = oneshot::channel();
        let mut inner = self.lock();
        // Dropped unsent, it tells of the end of the driver.
        if !inner.dead {
            if inner.generations.is_settled() {
                let _ = flushed.send(());
            } else {
                inner.generations.flush(flushed);
            }
        }
        wait
    }

    /// No handle is left.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
        self.watched.notify_one();
    }

    /// Whether everything has been answered and nothing more will come.
    pub(crate) fn is_finished(&self) -> bool {
        self.lock().is_finished()
    }

    /// The driver is gone: everything that waits gets no answer.
    pub(crate) fn kill(&self) {
        let mut inner = self.lock();
        inner.dead = true;
        let dropped = (
            std::mem::take(&mut inner.waiting),
            std::mem::take(&mut inner.later),
            std::mem::take(&mut inner.generations),
        );
        drop(inner);
        drop(dropped);
    }
}

impl Inner {
    fn is_finished(&self) -> bool {
        self.dead || self.closed && self.generations.is_settled()
    }
}

impl Generations {
    fn enter(&mut self) -> u64 {
        if self.open.is_empty() {
            self.open.push_back(Generation::default());
        }
        if let Some(last) = self.open.back_mut() {
            last.unanswered += 1;
        }
        self.first + self.open.len() as u64 - 1
    }

    fn leave(&mut self, generation: u64) {
        let index = generation.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(generation) = index.and_then(|index| self.open.get_mut(index)) {
            generation.unanswered -= 1;
        }
    }

    fn is_settled(&self) -> bool {
        self.open.iter().all(|generation| generation.unanswered == 0)
    }

    /// Ends the generation; `flushed` is told when it and all before it are answered.
    fn flush(&mut self, flushed: oneshot::Sender<()>) {
        let last = self.open.len().saturating_sub(1);
        let unused = self.open.back().is_some_and(|generation| generation.unanswered == 0);
        let awaited = if unused { last.saturating_sub(1) } else { last };
        if let Some(generation) = self.open.get_mut(awaited) {
            generation.flushed.push(flushed);
        }
        if !unused {
            self.open.push_back(Generation::default());
        }
    }

    /// Closes the oldest generations as far as they are answered, and gives who waits for them.
    fn settle(&mut self) -> Vec<oneshot::Sender<()>> {
        let mut flushed = Vec::new();
        // The last one is still being filled.
        while self.open.len() > 1 && self.open.front().is_some_and(|generation| generation.unanswered == 0) {
            if let Some(generation) = self.open.pop_front() {
                flushed.extend(generation.flushed);
                self.first += 1;
            }
        }
        flushed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consumer_core::dedup::{ClaimRequest, Owner, StoreKey};

    use super::*;
    use crate::operation::Work;

    fn operation(until: Instant) -> Operation {
        let request = ClaimRequest {
            key: StoreKey::new("scope".into(), "key".into()),
            owner: Owner { process: 1, seq: 1 },
            fingerprint: None,
            lease: Duration::from_secs(1),
            grace: Duration::from_secs(1),
            attempt: 1,
            redrive: 0,
        };
        Operation::new(Work::Claim { request, contested: false, epoch: 0, answer: None }, until)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_for_what_was_before_it_and_for_nothing_else() {
        let queue = Queue::default();
        queue.flush().await.unwrap();
        queue.push(operation(Instant::now()));
        let (mut first, mut again) = (queue.flush(), queue.flush());
        queue.push(operation(Instant::now()));
        let mut second = queue.flush();
        let mut taken = Vec::new();
        assert!(queue.take(10, &mut taken).await);
        let later = taken.pop().unwrap();
        // Answered out of order: the second has to wait for the first all the same.
        queue.answered([&later].into_iter());
        assert!(first.try_recv().is_err() && again.try_recv().is_err() && second.try_recv().is_err());
        queue.answered(taken.iter());
        assert!(first.try_recv().is_ok() && again.try_recv().is_ok() && second.try_recv().is_ok());
        queue.flush().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_back_comes_first_and_in_its_order() {
        let queue = Queue::default();
        let start = Instant::now();
        for number in 0..4 {
            queue.push(operation(start + Duration::from_secs(number)));
        }
        let mut taken = Vec::new();
        assert!(queue.take(2, &mut taken).await);
        queue.push_back_again(taken.drain(..));
        assert!(queue.take(10, &mut taken).await);
        let order: Vec<_> = taken.iter().map(|op| op.until.duration_since(start).as_secs()).collect();
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_due_is_taken_out() {
        let queue = Queue::default();
        let now = Instant::now();
        assert!(queue.take_over_due(now).is_none());
        queue.push(operation(now + Duration::from_secs(5)));
        queue.push(operation(now));
        assert_eq!(queue.take_over_due(now).unwrap().len(), 1);
        assert_eq!(queue.take_over_due(now).unwrap().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_aside_lets_others_pass_and_is_taken_after_the_next_look() {
        let queue = Queue::default();
        let soon = Instant::now() + Duration::from_secs(1);
        queue.push(operation(soon));
        let mut taken = Vec::new();
        assert!(queue.take(10, &mut taken).await);
        queue.push_later(std::mem::take(&mut taken));
        queue.push(operation(soon));
        assert!(queue.take(10, &mut taken).await && taken.len() == 1);
        assert_eq!(queue.take_over_due(Instant::now()).unwrap().len(), 0);
        assert!(queue.take(10, &mut taken).await && taken.len() == 2);
        queue.push_later(std::mem::take(&mut taken));
        assert_eq!(queue.take_over_due(soon).unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn closed_it_ends_when_all_is_answered_and_dead_it_takes_nothing() {
        let queue = Queue::default();
        queue.push(operation(Instant::now()));
        queue.close();
        let mut taken = Vec::new();
        assert!(queue.take(10, &mut taken).await && !queue.is_finished());
        queue.answered(taken.iter());
        assert!(!queue.take(10, &mut taken).await && queue.is_finished());

        let queue = Queue::default();
        queue.push(operation(Instant::now()));
        let flush = queue.flush();
        queue.kill();
        assert!(flush.await.is_err() && queue.flush().await.is_err());
        queue.push(operation(Instant::now()));
        assert!(queue.take_over_due(Instant::now()).is_none());
    }
}
