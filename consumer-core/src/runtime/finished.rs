//! How running deliveries tell the driver that they are done.

use std::{
    sync::{Arc, PoisonError},
    task::{Context, Waker},
};

use crate::{Message, Outcome, Tag, sync::Mutex};

/// How a presentation ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The stack has dealt with it.
    Settled(Outcome),
    /// Handed back: shutdown or the end of its scope.
    Returned,
    /// Given up by policy.
    Discarded,
    /// Its task was dropped or panicked; the message is here to be presented again.
    Dropped(Message),
}

#[derive(Debug)]
pub(super) struct Finished {
    pub(super) tag: Tag,
    pub(super) lane: Option<u64>,
    pub(super) slot: usize,
    pub(super) ending: Ending,
}

/// Where finished deliveries are put; swapped out by the driver as a whole.
#[derive(Default)]
pub(super) struct Inbox(Mutex<Content>);

#[derive(Default)]
struct Content {
    finished: Vec<Finished>,
    waker: Option<Waker>,
}

impl Inbox {
    pub(super) fn push(&self, finished: Finished) {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        content.finished.push(finished);
        let waker = content.waker.take();
        drop(content);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Swaps `out`, which has to be empty, for what has come; with nothing there, the waker is kept.
    pub(super) fn swap(&self, cx: &mut Context<'_>, out: &mut Vec<Finished>) -> bool {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if content.finished.is_empty() {
            if !content.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                content.waker = Some(cx.waker().clone());
            }
            return false;
        }
        std::mem::swap(&mut content.finished, out);
        true
    }
}

/// Accounts for one running delivery: dropped on any path, also by a panic, it frees its place.
pub(super) struct Place {
    inbox: Arc<Inbox>,
    tag: Tag,
    lane: Option<u64>,
    slot: usize,
    message: Option<Message>,
}

impl Place {
    pub(super) fn new(inbox: Arc<Inbox>, tag: Tag, lane: Option<u64>, slot: usize, message: Message) -> Self {
        Self { inbox, tag, lane, slot, message: Some(message) }
    }

    /// The message for another presentation.
    pub(super) fn message(&self) -> Option<&Message> {
        self.message.as_ref()
    }

    pub(super) fn finish(mut self, ending: Ending) {
        self.message = None;
        self.push(ending);
    }

    fn push(&self, ending: Ending) {
        self.inbox.push(Finished { tag: self.tag, lane: self.lane, slot: self.slot, ending });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.push(Ending::Dropped(message));
        }
    }
}

#[cfg(all(test, shuttle))]
mod concurrency {
    use std::{future::poll_fn, task::Poll};

    use shuttle::{future::block_on, thread};

    use super::*;
    use crate::sync::explore::explore;

    #[test]
    fn whatever_ends_wakes_the_driver_and_is_taken_once() {
        explore(1, || {
            let inbox: Arc<Inbox> = Arc::default();
            let place = |seq| Place::new(inbox.clone(), Tag { scope: 1, seq }, None, 0, Message::new("x"));
            let places = [[0, 1], [2, 3]].map(|seqs| seqs.map(place));
            let threads = places.map(|[finished, dropped]| {
                thread::spawn(move || {
                    finished.finish(Ending::Returned);
                    drop(dropped);
                })
            });
            let (mut taken, mut fresh) = (Vec::new(), Vec::new());
            block_on(poll_fn(|cx| {
                while inbox.swap(cx, &mut fresh) {
                    taken.extend(fresh.drain(..).map(|done| (done.tag.seq, done.ending)));
                }
                if taken.len() < 4 { Poll::Pending } else { Poll::Ready(()) }
            }));
            taken.sort_by_key(|(seq, _)| *seq);
            let dropped = |ending: &Ending| matches!(ending, Ending::Dropped(_));
            assert!(taken.iter().map(|(seq, _)| *seq).eq(0..4));
            assert!(taken.iter().all(|(seq, ending)| dropped(ending) == (seq % 2 == 1)));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
