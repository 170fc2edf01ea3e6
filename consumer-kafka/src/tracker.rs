//! Which offset may be committed: pure bookkeeping of one assignment of one partition.
//!
//! The crate `models` compiles this file as well, with messages that are nothing, and explores what it does.

use std::collections::VecDeque;

use consumer_core::Message;

/// How far an assignment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Progress {
    /// The offset to commit, if anything is to be.
    pub(crate) next: Option<u64>,
    /// How many messages lie below it.
    pub(crate) settled: u64,
}

impl Progress {
    /// Whether there is something to commit, with `committed` being what the broker has.
    pub(crate) fn is_news(self, committed: Progress) -> bool {
        self.next.is_some() && self.next != committed.next
    }
}

/// The window from the first delivered offset that is not done up to the last delivered one.
///
/// It counts *delivered* offsets, so holes in the log (compaction, transaction markers) do not hold it up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tracker<M = Message> {
    window: VecDeque<Entry<M>>,
    settled: u64,
    running: usize,
    position: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry<M> {
    offset: u64,
    state: State<M>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State<M> {
    /// With the runtime. The clone costs reference counts and is there for a nack.
    Running(M),
    /// Nacked, waiting to be delivered again.
    Returned(M),
    Done,
}

impl<M> Default for Tracker<M> {
    fn default() -> Self {
        Self { window: VecDeque::new(), settled: 0, running: 0, position: None }
    }
}

impl<M: Clone> Tracker<M> {
    /// A message goes to the runtime. Offsets only grow within an assignment.
    pub(crate) fn deliver(&mut self, offset: u64, message: M) {
        debug_assert!(self.position.is_none_or(|position| offset >= position));
        self.position = Some(offset + 1);
        self.running += 1;
        self.window.push_back(Entry { offset, state: State::Running(message) });
    }

    /// The offset is done. What may be committed, if that has changed. A second time, or for an offset that was never
    /// delivered, nothing happens.
    pub(crate) fn finish(&mut self, offset: u64) -> Option<Progress> {
        let index = self.index(offset)?;
        match std::mem::replace(&mut self.window[index].state, State::Done) {
            State::Running(_) => self.running -= 1,
            State::Returned(_) => {}
            State::Done => return None,
        }
        let mut next = None;
        while let Some(Entry { offset, state: State::Done }) = self.window.front() {
            next = Some(offset + 1);
            self.settled += 1;
            self.window.pop_front();
        }
        Some(Progress { next: Some(next?), settled: self.settled })
    }

    /// The runtime hands the message back. Whether it is to be delivered again.
    pub(crate) fn give_back(&mut self, offset: u64) -> bool {
        let Some(index) = self.index(offset) else { return false };
        let State::Running(message) = &self.window[index].state else { return false };
        self.window[index].state = State::Returned(message.clone());
        self.running -= 1;
        true
    }

    /// The message that was handed back, to be delivered again.
    pub(crate) fn deliver_again(&mut self, offset: u64) -> Option<M> {
        let index = self.index(offset)?;
        let State::Returned(message) = &self.window[index].state else { return None };
        let message = message.clone();
        self.window[index].state = State::Running(message.clone());
        self.running += 1;
        Some(message)
    }

    /// How many messages are with the runtime.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// How many are done behind one that is not, where no commit can reach them.
    pub(crate) fn done_behind(&self) -> u64 {
        self.window.iter().filter(|entry| matches!(entry.state, State::Done)).count() as u64
    }

    /// The offset behind the last one delivered.
    pub(crate) fn position(&self) -> Option<u64> {
        self.position
    }

    fn index(&self, offset: u64) -> Option<usize> {
        let first = self.window.front()?.offset;
        // Without holes in the log the index is the distance.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.window.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Some(guess);
        }
        self.window.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(tracker: &mut Tracker, offsets: impl IntoIterator<Item = u64>) {
        for offset in offsets {
            tracker.deliver(offset, Message::new("x"));
        }
    }

    fn next(progress: Option<Progress>) -> Option<u64> {
        progress.and_then(|progress| progress.next)
    }

    #[test]
    fn fm12_what_is_done_behind_a_running_offset_is_not_committed() {
        let mut tracker = Tracker::default();
        deliver(&mut tracker, 5..=7);
        assert_eq!(next(tracker.finish(7)), None);
        assert_eq!(next(tracker.finish(6)), None);
        assert_eq!(next(tracker.finish(5)), Some(8));
        assert_eq!((tracker.running(), tracker.position()), (0, Some(8)));
    }

    #[test]
    fn fm13_holes_in_the_log_do_not_hold_the_commit_up() {
        let mut tracker = Tracker::default();
        deliver(&mut tracker, [0, 3, 4, 90, 91]);
        assert_eq!(next(tracker.finish(0)), Some(1));
        assert_eq!(next(tracker.finish(90)), None);
        assert_eq!(next(tracker.finish(4)), None);
        assert_eq!(next(tracker.finish(3)), Some(91));
        assert_eq!(next(tracker.finish(91)), Some(92));
        assert_eq!(next(tracker.finish(50)), None, "an offset in a hole is unknown");
    }

    #[test]
    fn fm14_a_second_or_foreign_completion_changes_nothing() {
        let mut tracker = Tracker::default();
        deliver(&mut tracker, [10, 11]);
        assert_eq!(next(tracker.finish(9)), None);
        assert_eq!(next(tracker.finish(12)), None);
        assert_eq!(next(tracker.finish(10)), Some(11));
        assert_eq!(next(tracker.finish(10)), None);
        assert_eq!(tracker.running(), 1);
    }

    #[test]
    fn a_nacked_message_is_delivered_again_and_holds_the_commit() {
        let mut tracker = Tracker::default();
        deliver(&mut tracker, [0, 1]);
        assert!(tracker.give_back(0));
        assert!(!tracker.give_back(0), "it is not running");
        assert_eq!(next(tracker.finish(1)), None);
        assert_eq!(tracker.running(), 0);
        assert!(tracker.deliver_again(0).is_some());
        assert!(tracker.deliver_again(0).is_none());
        let progress = tracker.finish(0).unwrap();
        assert_eq!((progress.next, progress.settled), (Some(2), 2));
    }

    /// Any order of completions, against the obvious rule.
    #[test]
    fn the_committed_offset_never_passes_a_delivered_one_that_is_not_done() {
        let mut seed = 7_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut tracker = Tracker::default();
            let (mut offset, mut open, mut committed) = (0, Vec::new(), 0);
            for _ in 0..100 {
                if open.is_empty() || random(2) == 0 {
                    offset += 1 + random(3);
                    deliver(&mut tracker, [offset]);
                    open.push(offset);
                } else {
                    let done = open.swap_remove(random(open.len() as u64) as usize);
                    if let Some(next) = next(tracker.finish(done)) {
                        assert!(next > committed);
                        committed = next;
                    }
                }
                let lowest = open.iter().min().copied().unwrap_or(offset + 1);
                assert!(committed <= lowest);
                assert!(!open.is_empty() || committed == offset + 1, "everything is done");
            }
        }
    }
}
