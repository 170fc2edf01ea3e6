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
                fresh |= room > 0;
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
