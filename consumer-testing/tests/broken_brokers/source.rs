//! A source with a fault.

use std::{
    collections::VecDeque,
    sync::atomic::Ordering,
    task::{Context, Poll, Waker},
};

use consumer_core::{Delivery, Demand, Event, Settlement, Source, SourceError, Tag, memory::MemorySource};

use crate::{Fault, Shared};

#[derive(Debug)]
pub(crate) struct FaultySource {
    inner: MemorySource,
    fault: Fault,
    /// There was another source before it.
    late: bool,
    shared: Shared,
    delivered: usize,
    cuts: usize,
    /// What is not settled, in the order of delivery.
    held: Vec<Tag>,
    /// Settled once already.
    settled: Vec<(Tag, consumer_core::Message)>,
    again: VecDeque<Delivery>,
    unflushed: Vec<(Tag, Settlement)>,
    /// What was unflushed when a flush began.
    flushing: Option<usize>,
    connected: bool,
    demand: Option<Demand>,
}

impl FaultySource {
    pub(crate) fn new(inner: MemorySource, fault: Fault, late: bool, shared: Shared) -> Self {
        Self {
            inner,
            fault,
            late,
            delivered: 0,
            cuts: shared.cuts.load(Ordering::Relaxed),
            shared,
            held: Vec::new(),
            settled: Vec::new(),
            again: VecDeque::new(),
            unflushed: Vec::new(),
            flushing: None,
            connected: false,
            demand: None,
        }
    }

    fn ack_all(&mut self) {
        for tag in std::mem::take(&mut self.held) {
            self.inner.settle(tag, Settlement::Ack);
        }
    }

    /// Takes note of a delivery; tells whether it is handed over.
    fn deliver(&mut self, delivery: &Delivery) -> bool {
        self.delivered += 1;
        let cuts = self.shared.cuts.load(Ordering::Relaxed);
        let lost = match self.fault {
            Fault::LosesEveryTenth => self.delivered.is_multiple_of(10),
            Fault::LosesOneAfterCut => std::mem::replace(&mut self.cuts, cuts) != cuts,
            _ => false,
        };
        if lost || self.fault == Fault::AcksOnDelivery {
            self.inner.settle(delivery.tag, Settlement::Ack);
        }
        if !lost {
            self.held.push(delivery.tag);
            self.shared.held.fetch_add(1, Ordering::Relaxed);
        }
        if self.fault == Fault::SettlesTwice {
            self.settled.push((delivery.tag, delivery.message.clone()));
        }
        !lost
    }
}

impl Source for FaultySource {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        assert!(self.demand.replace(demand).is_none(), "a source is configured once");
        self.inner.configure(demand)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        let fault = self.fault;
        let demand = self.demand.expect("a source is configured before the first poll").max_in_flight;
        // A broker that fetches no more than was demanded would have nothing to give.
        assert!(
            fault != Fault::None || self.held.len() + room <= demand,
            "a rule holds more than it demands"
        );
        if fault == Fault::OneMemberHasAll && self.late {
            let connected = std::mem::replace(&mut self.connected, true);
            return if connected { Poll::Pending } else { Poll::Ready(Ok(Event::Connected)) };
        }
        if fault == Fault::SilentWithoutRoom && room == 0 {
            return Poll::Pending;
        }
        let cuts = self.shared.cuts.load(Ordering::Relaxed);
        if fault == Fault::AcksAtCut && self.cuts != cuts {
            self.cuts = cuts;
            // The broker has forgotten what it was waiting for: the acks are those of the scopes that follow.
            self.held.clear();
            let mut lost = Vec::new();
            while let Poll::Ready(Ok(_)) = self.inner.poll_event(cx, 100, &mut lost) {}
            for delivery in lost {
                self.inner.settle(delivery.tag, Settlement::Ack);
            }
        }
        if room > 0
            && let Some(delivery) = self.again.pop_front()
        {
            out.push(delivery);
            return Poll::Ready(Ok(Event::Delivered));
        }
        let room = if fault == Fault::IgnoresTheRoom { room + 1 } else { room };
        let mut noop = Context::from_waker(Waker::noop());
        let cx = if fault == Fault::NeverWakes { &mut noop } else { cx };
        loop {
            let mut batch = Vec::new();
            let event = std::task::ready!(self.inner.poll_event(cx, room, &mut batch));
            if fault == Fault::DeliversBackwards {
                batch.reverse();
            }
            batch.retain(|delivery| self.deliver(delivery));
            match event {
                Ok(Event::Connected) if fault == Fault::NeverSaysConnected => {}
                Ok(Event::Delivered) if batch.is_empty() => {}
                event => {
                    out.extend(batch);
                    return Poll::Ready(event);
                }
            }
        }
    }

    fn settle(&mut self, mut tag: Tag, how: Settlement) {
        if let Some(at) = self.held.iter().position(|held| *held == tag) {
            self.shared.held.fetch_sub(1, Ordering::Relaxed);
            self.held.remove(at);
        }
        let how = match (self.fault, how) {
            (Fault::IgnoresAcks, Settlement::Ack) => return,
            (Fault::RejectIsNack, Settlement::Reject) => Settlement::Nack,
            (Fault::NackIsAck, Settlement::Nack) => Settlement::Ack,
            (_, how) => how,
        };
        match self.fault {
            Fault::ForgetsAcksAtClose | Fault::AnswersForAnEarlierFlush => {
                return self.unflushed.push((tag, how));
            }
            Fault::AcksAllBefore => {
                let before = |held: &Tag| held.scope == tag.scope && held.seq < tag.seq;
                for earlier in self.held.extract_if(.., |held| before(held)) {
                    self.inner.settle(earlier, how);
                }
            }
            Fault::IgnoresScopes => {
                let same = self.held.iter().find(|held| held.scope != tag.scope && held.seq == tag.seq);
                tag = same.copied().unwrap_or(tag);
            }
            Fault::SettlesTwice if how == Settlement::Nack => {
                let known = self.settled.iter().find(|(settled, _)| *settled == tag);
                let again = known.map(|(_, message)| Delivery { tag, message: message.clone() });
                self.again.extend(again);
            }
            _ => {}
        }
        self.inner.settle(tag, how);
    }

    fn release(&mut self, scope: u64) {
        self.held.retain(|tag| tag.scope != scope);
        self.inner.release(scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        let mut end = self.unflushed.len();
        if self.fault == Fault::AnswersForAnEarlierFlush {
            let Some(earlier) = self.flushing.take() else {
                self.flushing = Some(end);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            end = earlier;
        }
        for (tag, how) in self.unflushed.drain(..end) {
            self.inner.settle(tag, how);
        }
        let flushed = self.inner.poll_flush(cx);
        if self.fault == Fault::HidesWhatACutLost { Poll::Ready(Ok(())) } else { flushed }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if self.fault == Fault::AcksAtClose {
            self.ack_all();
        }
        self.inner.poll_close(cx)
    }
}
