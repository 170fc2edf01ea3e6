//! The deliveries of one channel that are not settled, and how their acks are put together.
//!
//! Delivery tags count from 1 without gaps, so a deque is enough. Acks that reach from the oldest delivery without a gap
//! go out as one frame with `multiple`; what is done behind one that is not waits a moment for the gap to close, and
//! then goes out one by one. A tag is named to the broker at most once: it closes the channel over a second time.

use std::collections::VecDeque;

use consumer_core::Message;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Window {
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// The tag that is to be handed over next.
    next: u64,
    /// Handed back, to be handed over again before anything else.
    returned: VecDeque<u64>,
    /// Slots that are done and not told.
    done: usize,
}

#[derive(Debug)]
struct Slot {
    state: State,
    since: Instant,
    message: Option<Message>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not handed over yet.
    Waiting,
    /// With the runtime.
    Held,
    /// Acked, and the broker is not told.
    Done,
    /// The broker is told.
    Told,
}

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    pub(crate) multiple: bool,
    /// How many deliveries the broker is told of by it for the first time.
    pub(crate) messages: u64,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { first: 1, slots: VecDeque::new(), next: 1, returned: VecDeque::new(), done: 0 }
    }

    /// A delivery came. False for a tag that does not follow the last one, of which nothing can be known.
    pub(crate) fn receive(&mut self, tag: u64, message: Message, now: Instant) -> bool {
        if tag != self.first + self.slots.len() as u64 {
            return false;
        }
        self.slots.push_back(Slot { state: State::Waiting, since: now, message: Some(message) });
        true
    }

    /// The next delivery for the runtime.
    pub(crate) fn hand_over(&mut self) -> Option<(u64, Message)> {
        loop {
            let tag = match self.returned.pop_front() {
                Some(tag) => tag,
                None => {
                    let tag = self.next;
                    self.slot(tag)?;
                    self.next += 1;
                    tag
                }
            };
            // It may have gone back to the queue meanwhile.
            if let Some(slot) = self.slot(tag)
                && slot.state == State::Waiting
            {
                slot.state = State::Held;
                return Some((tag, slot.message.clone()?));
            }
        }
    }

    /// How many were received and never handed over.
    pub(crate) fn waiting(&self) -> usize {
        (self.first + self.slots.len() as u64).saturating_sub(self.next) as usize
    }

    /// The runtime is done with it; to be told with the others. False if it was not held.
    pub(crate) fn finish(&mut self, tag: u64) -> bool {
        let Some(slot) = self.held(tag) else { return false };
        slot.state = State::Done;
        slot.message = None;
        self.done += 1;
        true
    }

    /// It is told of on its own. False if it was not held.
    pub(crate) fn take_out(&mut self, tag: u64) -> bool {
        let Some(slot) = self.held(tag) else { return false };
        slot.state = State::Told;
        slot.message = None;
        true
    }

    /// It is to be handed over again.
    pub(crate) fn give_back(&mut self, tag: u64) {
        if let Some(slot) = self.held(tag) {
            slot.state = State::Waiting;
            self.returned.push_back(tag);
        }
    }

    /// When it was received.
    pub(crate) fn since(&self, tag: u64) -> Option<Instant> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.slots.get(index).map(|slot| slot.since)
    }

    /// When the oldest one was received that is not with the runtime.
    pub(crate) fn oldest_waiting(&self) -> Option<Instant> {
        self.slots.iter().find(|slot| slot.state == State::Waiting).map(|slot| slot.since)
    }

    /// The one ack for all that are done from the oldest on.
    pub(crate) fn leading(&mut self) -> Option<Ack> {
        let mut ack: Option<Ack> = None;
        while let Some(slot) = self.slots.front()
            && matches!(slot.state, State::Done | State::Told)
        {
            // The broker has to know the tag that is named: not one that it was told of before.
            if slot.state == State::Done {
                self.done -= 1;
                let messages = ack.map_or(0, |ack| ack.messages) + 1;
                ack = Some(Ack { tag: self.first, multiple: messages > 1, messages });
            }
            self.slots.pop_front();
            self.first += 1;
        }
        self.next = self.next.max(self.first);
        ack
    }

    /// Those that are not with the runtime and were received `before` this time; they are told of on their own.
    pub(crate) fn take_waiting(&mut self, before: Instant) -> Vec<u64> {
        let first = self.first;
        let waiting = self.slots.iter_mut().zip(first..).filter(|(slot, _)| slot.state == State::Waiting);
        let overdue = waiting.filter(|(slot, _)| slot.since <= before);
        overdue
            .map(|(slot, tag)| {
                slot.state = State::Told;
                slot.message = None;
                tag
            })
            .collect()
    }

    /// How many are done and not told.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// How many there are, from the oldest that is not told on.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The acks for those, one by one.
    pub(crate) fn take_behind(&mut self) -> Vec<Ack> {
        if self.done == 0 {
            return Vec::new();
        }
        self.done = 0;
        let first = self.first;
        let done = self.slots.iter_mut().zip(first..).filter(|(slot, _)| slot.state == State::Done);
        done.map(|(slot, tag)| {
            slot.state = State::Told;
            Ack { tag, multiple: false, messages: 1 }
        })
        .collect()
    }

    fn slot(&mut self, tag: u64) -> Option<&mut Slot> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }

    fn held(&mut self, tag: u64) -> Option<&mut Slot> {
        self.slot(tag).filter(|slot| slot.state == State::Held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn filled(count: u64) -> Window {
        let mut window = Window::new();
        for tag in 1..=count {
            assert!(window.receive(tag, Message::new("x"), Instant::now()));
            assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(tag));
        }
        window
    }

    fn one(tag: u64) -> Ack {
        Ack { tag, multiple: false, messages: 1 }
    }

    #[test]
    fn a_run_from_the_oldest_on_is_one_ack() {
        let mut window = filled(5);
        for tag in [2, 1, 3] {
            window.finish(tag);
        }
        assert_eq!(window.leading(), Some(Ack { tag: 3, multiple: true, messages: 3 }));
        assert_eq!((window.leading(), window.done()), (None, 0));
        window.finish(4);
        assert_eq!(window.leading(), Some(one(4)));
    }

    #[test]
    fn what_is_done_behind_a_gap_is_told_one_by_one_and_never_again() {
        let mut window = filled(5);
        for tag in [2, 3, 5] {
            window.finish(tag);
        }
        assert_eq!((window.leading(), window.done()), (None, 3));
        assert_eq!(window.take_behind(), [one(2), one(3), one(5)]);
        window.finish(1);
        window.finish(4);
        // The ack reaches over 2 and 3, which were told, and may not name 5.
        assert_eq!(window.leading(), Some(Ack { tag: 4, multiple: true, messages: 2 }));
        assert_eq!(window.leading(), None);
    }

    #[test]
    fn what_is_told_is_not_told_again_however_often_it_is_done() {
        let mut window = filled(2);
        assert!(window.finish(2));
        assert_eq!(window.take_behind(), [one(2)]);
        assert!(!window.finish(2) && !window.take_out(2));
        assert_eq!((window.take_behind(), window.leading()), (Vec::new(), None));
    }

    #[test]
    fn what_is_handed_back_comes_again_first() {
        let mut window = filled(2);
        window.receive(3, Message::new("x"), Instant::now());
        window.give_back(1);
        window.give_back(1);
        assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(1));
        assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(3));
        assert!(window.hand_over().is_none());
    }

    #[test]
    fn what_waits_for_too_long_goes_back_and_the_rest_goes_on() {
        let mut window = Window::new();
        let old = Instant::now();
        let new = old + std::time::Duration::from_secs(1);
        for (tag, since) in [(1, old), (2, old), (3, old), (4, new)] {
            window.receive(tag, Message::new("x"), since);
        }
        assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(1));
        window.give_back(1);
        assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(1));
        assert_eq!(window.take_waiting(old), [2, 3], "not what is with the runtime, and not what is new");
        assert!(window.finish(1));
        assert_eq!(window.leading(), Some(one(1)));
        assert_eq!(window.hand_over().map(|(tag, _)| tag), Some(4));
        assert!(window.finish(4));
        assert_eq!(window.leading(), Some(one(4)));
        assert!(window.hand_over().is_none());
    }

    #[test]
    fn what_is_told_on_its_own_is_named_once_and_passed_over() {
        let mut window = filled(2);
        window.receive(3, Message::new("x"), Instant::now());
        assert!(window.take_out(2));
        assert!(!window.take_out(2) && !window.finish(2), "the broker was told");
        assert!(!window.take_out(3), "it was not handed over");
        window.finish(1);
        assert_eq!(window.leading(), Some(one(1)));
        assert_eq!((window.len(), window.done()), (1, 0));
    }

    #[test]
    fn how_many_wait_and_since_when_is_known() {
        let mut window = Window::new();
        let old = Instant::now();
        let new = old + std::time::Duration::from_secs(1);
        let state = |window: &Window| (window.waiting(), window.oldest_waiting(), window.len());
        assert_eq!(state(&window), (0, None, 0));
        for (tag, since) in [(1, old), (2, new), (3, new)] {
            window.receive(tag, Message::new("x"), since);
        }
        assert_eq!(state(&window), (3, Some(old), 3));
        assert_eq!([0, 1, 2, 4].map(|tag| window.since(tag)), [None, Some(old), Some(new), None]);
        window.hand_over();
        assert_eq!(state(&window), (2, Some(new), 3));
        window.give_back(1);
        assert_eq!(state(&window), (2, Some(old), 3), "it was handed over before");
        window.hand_over();
        window.finish(1);
        window.leading();
        assert_eq!(state(&window), (2, Some(new), 2));
        window.hand_over();
        window.hand_over();
        assert_eq!(state(&window), (0, None, 2));
    }

    #[test]
    fn a_tag_out_of_turn_is_not_taken() {
        let mut window = filled(1);
        assert!(!window.receive(3, Message::new("x"), Instant::now()));
        assert!(!window.finish(7) && !window.finish(0));
    }

    proptest! {
        /// Whatever the order, each tag that was finished is told exactly once, and no other.
        #[test]
        fn every_ack_is_told_once(steps in prop::collection::vec((0_u8..4, 0_usize..40), 1..300)) {
            let mut window = Window::new();
            let mut held = BTreeSet::new();
            let mut expected = BTreeSet::new();
            let mut outstanding = BTreeSet::new();
            let mut told = BTreeSet::new();
            let mut received = 0;
            let mut apply = |ack: Ack, outstanding: &mut BTreeSet<u64>, expected: &BTreeSet<u64>| {
                assert!(outstanding.contains(&ack.tag), "{ack:?} names an unknown tag");
                let reached: Vec<_> = match ack.multiple {
                    true => outstanding.range(..=ack.tag).copied().collect(),
                    false => vec![ack.tag],
                };
                for tag in reached {
                    assert!(expected.contains(&tag), "{ack:?} reaches {tag}, which is not done");
                    outstanding.remove(&tag);
                    assert!(told.insert(tag));
                }
            };
            for (step, nth) in steps {
                match step {
                    0 => {
                        received += 1;
                        window.receive(received, Message::new("x"), Instant::now());
                        outstanding.insert(received);
                        held.extend(window.hand_over().map(|(tag, _)| tag));
                    }
                    1 => if let Some(tag) = held.iter().nth(nth % held.len().max(1)).copied() {
                        held.remove(&tag);
                        prop_assert!(window.finish(tag));
                        expected.insert(tag);
                    },
                    2 => if let Some(ack) = window.leading() { apply(ack, &mut outstanding, &expected) },
                    _ => for ack in window.take_behind() { apply(ack, &mut outstanding, &expected) },
                }
            }
            for ack in window.leading().into_iter().chain(window.take_behind()) {
                apply(ack, &mut outstanding, &expected);
            }
            prop_assert_eq!(told, expected);
        }
    }
}
