//! What the runtime's side makes of what the thread hands over. It owns the trackers.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use consumer_core::{Delivery, Event, Settlement, SourceError, Tag};

use crate::{
    partition::Partition,
    shared::{Control, Queued, Shared},
    tracker::Tracker,
};

#[derive(Debug)]
pub(crate) struct Intake {
    shared: Arc<Shared>,
    partitions: HashMap<u64, Tracked, foldhash::fast::RandomState>,
    /// Taken from the shared state, in order.
    controls: VecDeque<Control>,
    queue: VecDeque<Queued>,
    /// Nacked, to be delivered again before anything else.
    returned: VecDeque<Tag>,
    flush: Option<u64>,
}

#[derive(Debug)]
struct Tracked {
    partition: Arc<Partition>,
    tracker: Tracker,
    closing: bool,
}

impl Intake {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            partitions: HashMap::default(),
            controls: VecDeque::new(),
            queue: VecDeque::new(),
            returned: VecDeque::new(),
            flush: None,
        }
    }

    /// How many partitions the runtime still has to do with.
    pub(crate) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// As [`Source::poll_event`](consumer_core::Source::poll_event).
    pub(crate) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        loop {
            if let Some(event) = self.next_event() {
                return Poll::Ready(Ok(event));
            }
            if !self.shared.has_news() && self.deliver(room, out) {
                return Poll::Ready(Ok(Event::Delivered));
            }
            let mut state = self.shared.lock();
            let mut fresh = !state.controls.is_empty();
            self.controls.extend(state.controls.drain(..));
            if self.queue.is_empty() && !state.queue.is_empty() {
                // The thread goes on with our empty vector, so neither side allocates.
                let empty = mem::take(&mut self.queue).into();
                self.queue = mem::replace(&mut state.queue, empty).into();
                fresh = true;
            }
            if !fresh && let Some(failure) = state.failure() {
                return Poll::Ready(Err(SourceError::new(failure)));
            }
            if state.failure().is_none() {
                self.shared.seen(&state);
            }
            if !fresh {
                if state.closed().is_some() {
                    return Poll::Ready(Ok(Event::End));
                }
                state.register(cx);
                return Poll::Pending;
            }
        }
    }

    pub(crate) fn settle(&mut self, tag: Tag, how: Settlement) {
        let Some(tracked) = self.partitions.get_mut(&tag.scope) else { return };
        match how {
            Settlement::Ack | Settlement::Reject => {
                if let Some(progress) = tracked.tracker.finish(tag.seq) {
                    tracked.partition.advance(progress);
                    // One that has begun does not tell of this.
                    self.flush = None;
                }
            }
            Settlement::Nack => {
                // In a partition that goes, it is for the next owner.
                if tracked.tracker.give_back(tag.seq) && !tracked.closing {
                    self.returned.push_back(tag);
                }
            }
        }
        tracked.release_if_idle(&self.shared);
    }

    pub(crate) fn release(&mut self, scope: u64) {
        if let Some(tracked) = self.partitions.remove(&scope) {
            tracked.partition.release();
            self.shared.wake_thread();
            let messages = tracked.tracker.done_behind();
            if messages > 0 {
                self.controls.push_back(Control::Unsettled { scope, messages });
            }
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        let ticket = *self.flush.get_or_insert_with(|| self.shared.request_flush());
        let mut state = self.shared.lock();
        if let Some(outcome) = state.flushed(ticket) {
            self.flush = None;
            return Poll::Ready(outcome.map_err(SourceError::new));
        }
        state.register_flush(cx);
        Poll::Pending
    }

    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.shared.request_close();
        let mut state = self.shared.lock();
        if let Some(outcome) = state.closed() {
            return Poll::Ready(outcome.map_err(SourceError::new));
        }
        state.register_flush(cx);
        Poll::Pending
    }

    pub(crate) fn lag(&self) -> Option<u64> {
        // What is buffered lies behind the position, so it counts.
        let mut lag = 0;
        for tracked in self.partitions.values() {
            lag += tracked.partition.lag(tracked.tracker.position())?;
        }
        Some(lag)
    }

    /// What the runtime is to be told next, besides deliveries.
    fn next_event(&mut self) -> Option<Event> {
        while let Some(control) = self.controls.pop_front() {
            match control {
                Control::Assigned(partition) => {
                    let tracked = Tracked { partition, tracker: Tracker::default(), closing: false };
                    self.partitions.insert(tracked.partition.scope, tracked);
                }
                Control::Connected => return Some(Event::Connected),
                Control::Disconnected => return Some(Event::Disconnected),
                Control::Unsettled { scope, messages } => return Some(Event::Unsettled { scope, messages }),
                Control::Closing { partition, within } => {
                    let scope = partition.scope;
                    self.forget_queued(scope);
                    if let Some(tracked) = self.partitions.get_mut(&scope) {
                        tracked.closing = true;
                        tracked.release_if_idle(&self.shared);
                    }
                    return Some(Event::Closing { scope, within });
                }
            }
        }
        None
    }

    /// Drops what was not delivered of a scope that ends.
    fn forget_queued(&mut self, scope: u64) {
        let (mut messages, mut bytes) = (0, 0);
        self.queue.retain(|queued| {
            let keep = queued.tag.scope != scope;
            if !keep {
                messages += 1;
                bytes += queued.bytes;
            }
            keep
        });
        self.shared.taken(messages, bytes);
        self.returned.retain(|tag| tag.scope != scope);
    }

    fn deliver(&mut self, room: usize, out: &mut Vec<Delivery>) -> bool {
        let before = out.len();
        while out.len() - before < room
            && let Some(tag) = self.returned.pop_front()
        {
            let message = self.partitions.get_mut(&tag.scope).and_then(|t| t.tracker.deliver_again(tag.seq));
            out.extend(message.map(|message| Delivery { tag, message }));
        }
        let (mut messages, mut bytes) = (0, 0);
        while out.len() - before < room
            && let Some(Queued { tag, message, bytes: size }) = self.queue.pop_front()
        {
            messages += 1;
            bytes += size;
            match self.partitions.get_mut(&tag.scope) {
                Some(tracked) if !tracked.closing => {
                    tracked.tracker.deliver(tag.seq, message.clone());
                    out.push(Delivery { tag, message });
                }
                // Taken from the driver just before its partition went.
                _ => {}
            }
        }
        self.shared.taken(messages, bytes);
        out.len() > before
    }
}

impl Tracked {
    /// Nothing runs any more: a revocation need not wait for the runtime to say so.
    fn release_if_idle(&self, shared: &Shared) {
        if self.closing && self.tracker.running() == 0 {
            self.partition.release();
            shared.wake_thread();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Waker, time::Duration};

    use consumer_core::Message;

    use super::*;
    use crate::{error::KafkaError, tracker::Progress};

    const NONE: [u64; 0] = [];
    /// Two of them and the buffer is not low.
    const LARGE: usize = 3 << 20;

    fn intake() -> (Intake, Arc<Shared>, Arc<Partition>) {
        let shared: Arc<Shared> = Arc::default();
        let partition = Partition::new("t".into(), 0);
        shared.control(Control::Assigned(partition.clone()));
        (Intake::new(shared.clone()), shared, partition)
    }

    fn push(shared: &Shared, partition: &Partition, offsets: std::ops::Range<u64>) {
        let queued = |seq| Queued { tag: tag(partition, seq), message: Message::new("x"), bytes: LARGE };
        shared.push(&mut offsets.map(queued).collect());
    }

    fn tag(partition: &Partition, seq: u64) -> Tag {
        Tag { scope: partition.scope, seq }
    }

    /// The offsets that are delivered with the next event, and the event.
    fn poll(intake: &mut Intake, room: usize) -> (Vec<u64>, Poll<Result<Event, SourceError>>) {
        // What lies there already takes no room.
        let before = |_| Delivery { tag: Tag { scope: 0, seq: 0 }, message: Message::new("before") };
        let mut out: Vec<_> = (0..3).map(before).collect();
        let event = intake.poll_event(&mut Context::from_waker(Waker::noop()), room, &mut out);
        (out[3..].iter().map(|delivery| delivery.tag.seq).collect(), event)
    }

    fn delivered(intake: &mut Intake, room: usize) -> Vec<u64> {
        match poll(intake, room) {
            (offsets, Poll::Ready(Ok(Event::Delivered))) => offsets,
            (offsets, Poll::Pending) if offsets.is_empty() => offsets,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_more_is_delivered_than_there_is_room_and_what_is_delivered_leaves_the_buffer() {
        let (mut intake, shared, partition) = intake();
        push(&shared, &partition, 0..5);
        assert_eq!(delivered(&mut intake, 0), NONE);
        assert_eq!(delivered(&mut intake, 2), [0, 1]);
        assert_eq!((shared.buffered(), intake.partitions()), (3, 1));
        assert_eq!(delivered(&mut intake, 0), NONE);
        assert!(!shared.is_low());
        assert_eq!(delivered(&mut intake, 9), [2, 3, 4]);
        assert_eq!((shared.buffered(), shared.is_low()), (0, true));
        assert_eq!(delivered(&mut intake, 9), NONE);
    }

    #[test]
    fn what_is_acked_or_rejected_may_be_committed_and_what_is_nacked_comes_again_first() {
        let (mut intake, shared, partition) = intake();
        push(&shared, &partition, 0..4);
        assert_eq!(delivered(&mut intake, 3), [0, 1, 2]);
        intake.settle(tag(&partition, 1), Settlement::Nack);
        intake.settle(tag(&partition, 2), Settlement::Nack);
        intake.settle(tag(&partition, 0), Settlement::Ack);
        assert_eq!(partition.progress(), Progress { next: Some(1), settled: 1 });
        assert_eq!(delivered(&mut intake, 1), [1]);
        assert_eq!(delivered(&mut intake, 2), [2, 3]);
        intake.settle(tag(&partition, 2), Settlement::Ack);
        intake.settle(tag(&partition, 1), Settlement::Reject);
        assert_eq!(partition.progress(), Progress { next: Some(3), settled: 3 });
        assert!(!partition.is_released());
    }

    #[test]
    fn a_partition_that_goes_is_released_when_nothing_runs_in_it_and_gets_nothing_any_more() {
        let (mut intake, shared, partition) = intake();
        let other = Partition::new("t".into(), 1);
        shared.control(Control::Assigned(other.clone()));
        push(&shared, &partition, 0..2);
        push(&shared, &other, 5..6);
        push(&shared, &partition, 2..4);
        assert_eq!(delivered(&mut intake, 2), [0, 1]);
        assert_eq!(intake.partitions(), 2);
        intake.settle(tag(&partition, 0), Settlement::Nack);
        let within = Duration::from_secs(1);
        shared.control(Control::Closing { partition: partition.clone(), within });
        let (offsets, event) = poll(&mut intake, 9);
        let Poll::Ready(Ok(Event::Closing { scope, within: told })) = event else { panic!("{event:?}") };
        assert_eq!((offsets, scope, told), (Vec::new(), partition.scope, within));
        assert!(!partition.is_released(), "1 runs");
        push(&shared, &partition, 4..5);
        assert_eq!(delivered(&mut intake, 9), [5], "nothing of it, be it nacked, buffered or late");
        assert_eq!(delivered(&mut intake, 9), NONE);
        assert_eq!((shared.buffered(), shared.is_low()), (0, true));
        intake.settle(tag(&partition, 1), Settlement::Nack);
        assert!(partition.is_released() && !other.is_released());
        assert_eq!(delivered(&mut intake, 9), NONE);
        intake.release(partition.scope);
        assert_eq!(intake.partitions(), 1);
    }

    #[test]
    fn fm16_what_is_done_behind_one_that_is_not_is_unsettled_when_its_partition_goes() {
        let (mut intake, shared, partition) = intake();
        push(&shared, &partition, 0..6);
        assert_eq!(delivered(&mut intake, 6), [0, 1, 2, 3, 4, 5]);
        for seq in [0, 2, 4, 5] {
            intake.settle(tag(&partition, seq), Settlement::Ack);
        }
        intake.settle(tag(&partition, 3), Settlement::Nack);
        intake.release(partition.scope);
        let unsettled = Event::Unsettled { scope: partition.scope, messages: 3 };
        assert!(
            matches!(poll(&mut intake, 9).1, Poll::Ready(Ok(event)) if event == unsettled),
            "not 0: it can be committed"
        );
        intake.release(partition.scope);
        assert_eq!(delivered(&mut intake, 9), NONE, "told once");
    }

    #[test]
    fn a_partition_in_which_nothing_runs_is_released_with_the_news_that_it_goes() {
        let (mut intake, shared, partition) = intake();
        assert_eq!(delivered(&mut intake, 9), NONE);
        shared.control(Control::Closing { partition: partition.clone(), within: Duration::ZERO });
        assert!(poll(&mut intake, 9).1.is_ready());
        assert!(partition.is_released());
    }

    #[test]
    fn a_scope_that_the_runtime_gives_up_is_released_whatever_runs_in_it() {
        let (mut intake, shared, partition) = intake();
        push(&shared, &partition, 0..1);
        assert_eq!(delivered(&mut intake, 9), [0]);
        intake.release(partition.scope);
        assert!(partition.is_released());
        intake.settle(tag(&partition, 0), Settlement::Ack);
        assert_eq!(partition.progress(), Progress::default(), "nobody hears of it any more");
    }

    #[test]
    fn what_has_happened_is_told_before_a_failure_and_a_failure_instead_of_the_end() {
        let (mut intake, shared, partition) = intake();
        shared.control(Control::Connected);
        shared.control(Control::Disconnected);
        push(&shared, &partition, 0..1);
        shared.fail(&KafkaError::config("it cannot go on"));
        shared.closed(Ok(()));
        assert!(matches!(poll(&mut intake, 9).1, Poll::Ready(Ok(Event::Connected))));
        assert!(matches!(poll(&mut intake, 9).1, Poll::Ready(Ok(Event::Disconnected))));
        for _ in 0..2 {
            let (offsets, event) = poll(&mut intake, 9);
            let Poll::Ready(Err(error)) = event else { panic!("{event:?}") };
            assert!(offsets.is_empty() && error.to_string().contains("it cannot go on"), "{error}");
        }
    }

    #[test]
    fn a_source_that_was_closed_ends_and_its_flush_has_the_outcome() {
        let (mut intake, shared, _partition) = intake();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(intake.poll_flush(cx).is_pending() && intake.poll_close(cx).is_pending());
        assert!(shared.is_closing());
        shared.flush_answered(shared.flush_wanted(), Err("not committed".to_owned()));
        assert!(matches!(intake.poll_flush(cx), Poll::Ready(Err(_))));
        // The next one asks anew.
        assert!(intake.poll_flush(cx).is_pending());
        assert_eq!(shared.flush_wanted(), 2);
        shared.closed(Ok(()));
        assert!(matches!(intake.poll_flush(cx), Poll::Ready(Ok(()))));
        assert!(matches!(intake.poll_close(cx), Poll::Ready(Ok(()))));
        assert!(matches!(poll(&mut intake, 9).1, Poll::Ready(Ok(Event::End))));
    }

    #[test]
    fn a_flush_that_was_given_up_does_not_answer_for_what_is_acked_after_it() {
        let (mut intake, shared, partition) = intake();
        let cx = &mut Context::from_waker(Waker::noop());
        push(&shared, &partition, 0..3);
        assert_eq!(delivered(&mut intake, 3), [0, 1, 2]);
        intake.settle(tag(&partition, 0), Settlement::Ack);
        assert!(intake.poll_flush(cx).is_pending());
        intake.settle(tag(&partition, 2), Settlement::Ack);
        assert!(intake.poll_flush(cx).is_pending());
        assert_eq!(shared.flush_wanted(), 1, "behind 1 it cannot be committed");
        shared.flush_answered(1, Err("not committed".to_owned()));
        intake.settle(tag(&partition, 1), Settlement::Ack);
        assert!(intake.poll_flush(cx).is_pending(), "1 and 2 are not committed");
        shared.flush_answered(shared.flush_wanted(), Ok(()));
        assert!(matches!(intake.poll_flush(cx), Poll::Ready(Ok(()))));
    }

    #[test]
    fn what_was_lost_is_told_by_the_next_flush_that_is_polled_to_its_end() {
        let (mut intake, shared, partition) = intake();
        let cx = &mut Context::from_waker(Waker::noop());
        push(&shared, &partition, 0..1);
        assert_eq!(delivered(&mut intake, 1), [0]);
        assert!(intake.poll_flush(cx).is_pending());
        shared.lost("not committed".to_owned());
        assert!(intake.poll_flush(cx).is_pending());
        // Nobody asks for this answer.
        shared.flush_answered(shared.flush_wanted(), Ok(()));
        intake.settle(tag(&partition, 0), Settlement::Ack);
        for is_lost in [true, false] {
            assert!(intake.poll_flush(cx).is_pending());
            shared.flush_answered(shared.flush_wanted(), Ok(()));
            let Poll::Ready(outcome) = intake.poll_flush(cx) else { panic!("it is answered") };
            assert_eq!(outcome.is_err(), is_lost, "{outcome:?}");
        }
    }

    #[test]
    fn the_lag_is_known_when_that_of_every_partition_is() {
        let (mut intake, shared, partition) = intake();
        let other = Partition::new("t".into(), 1);
        shared.control(Control::Assigned(other.clone()));
        push(&shared, &partition, 3..4);
        assert_eq!(delivered(&mut intake, 9), [3]);
        let known = crate::sync::atomic::Ordering::Relaxed;
        partition.end.store(10, known);
        assert_eq!(intake.lag(), None);
        other.end.store(7, known);
        other.begin.store(5, known);
        assert_eq!(intake.lag(), Some(6 + 2));
    }
}
