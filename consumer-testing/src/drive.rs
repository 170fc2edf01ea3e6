//! A source without the runtime: what the conformance suites, and tests of sources, use to drive one.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{Delivery, Demand, Event, Settlement, Source, SourceError, Tag};
use tokio::time::timeout;

/// Drives a [`Source`] as async calls, each bounded by a patience.
///
/// The source is told its demand before the first poll, as the runtime does. Deliveries are buffered, other events are
/// recorded. A scope that is closing is released at once, and what it had
/// buffered is dropped, unless [`keep_scopes`](Self::keep_scopes) was called.
pub struct Driven<S> {
    source: S,
    patience: Duration,
    /// What the source is told of it before the first poll.
    demand: Option<usize>,
    room: usize,
    ack: bool,
    keep_scopes: bool,
    buffer: VecDeque<Delivery>,
    /// Every event that was no delivery, in its order.
    pub events: Vec<Event>,
    /// The payloads of everything that was delivered, in its order.
    pub payloads: Vec<Vec<u8>>,
}

impl<S: Source> Driven<S> {
    /// Drives `source`; nothing is waited for longer than `patience`.
    pub fn new(source: S, patience: Duration) -> Self {
        Self {
            source,
            patience,
            demand: Some(1_000),
            room: 100,
            ack: false,
            keep_scopes: false,
            buffer: VecDeque::new(),
            events: Vec::new(),
            payloads: Vec::new(),
        }
    }

    /// Says before the first poll that no more than `held` deliveries are held at once, settled ones not among them, and
    /// bounds the room by it. By default it is 1,000, and the room 100.
    #[must_use]
    pub fn demand(mut self, held: usize) -> Self {
        self.demand = Some(held);
        self.room = self.room.min(held);
        self
    }

    /// Bounds what is buffered.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
    }

    /// Acks every delivery as it comes.
    #[must_use]
    pub fn acking(mut self) -> Self {
        self.ack = true;
        self
    }

    /// Stops acking, or begins to.
    pub fn set_acking(&mut self, ack: bool) {
        self.ack = ack;
    }

    /// Leaves the release of closing scopes to the caller.
    #[must_use]
    pub fn keep_scopes(mut self) -> Self {
        self.keep_scopes = true;
        self
    }

    /// The source itself.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// Polls once; ready with every event, deliveries included.
    ///
    /// # Errors
    /// As the source's.
    ///
    /// # Panics
    /// When the source pushes more than the room it was given.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, SourceError>> {
        if let Some(held) = self.demand.take() {
            self.source.configure(Demand::new(held))?;
        }
        let mut out = Vec::new();
        let room = self.room.saturating_sub(self.buffer.len());
        let event = self.source.poll_event(cx, room, &mut out);
        assert!(
            out.len() <= room,
            "a source pushes no more than its room: {} in a room of {room}",
            out.len()
        );
        for delivery in out {
            self.payloads.push(delivery.message.payload().to_vec());
            if self.ack {
                self.source.settle(delivery.tag, Settlement::Ack);
            } else {
                self.buffer.push_back(delivery);
            }
        }
        if let Poll::Ready(Ok(event)) = &event {
            if *event != Event::Delivered {
                self.events.push(*event);
            }
            if let Event::Closing { scope, .. } = *event
                && !self.keep_scopes
            {
                self.buffer.retain(|delivery| delivery.tag.scope != scope);
                self.source.release(scope);
            }
        }
        event
    }

    /// What is buffered, without waiting for more.
    pub fn take_buffered(&mut self) -> Vec<Delivery> {
        self.buffer.drain(..).collect()
    }

    /// The next delivery; `None` when none came in time, or the source has ended.
    ///
    /// # Panics
    /// When the source fails.
    pub async fn next(&mut self) -> Option<Delivery> {
        let patience = self.patience;
        let next = poll_fn(|cx| {
            loop {
                if let Some(delivery) = self.buffer.pop_front() {
                    return Poll::Ready(Some(delivery));
                }
                match self.poll(cx) {
                    Poll::Ready(Ok(Event::End)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => panic!("the source failed: {error:?}"),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        timeout(patience, next).await.unwrap_or(None)
    }

    /// The next `n` deliveries.
    ///
    /// # Panics
    /// When they do not come in time; `why` goes into the message.
    pub async fn take(&mut self, n: usize, why: &str) -> Vec<Delivery> {
        let mut taken = Vec::with_capacity(n);
        while taken.len() < n {
            match self.next().await {
                Some(delivery) => taken.push(delivery),
                None => panic!("{why}: {} of {n} deliveries came within {:?}", taken.len(), self.patience),
            }
        }
        taken
    }

    /// Polls until this event has been seen; tells whether it came in time.
    pub async fn wait_for(&mut self, mut seen: impl FnMut(&[Event]) -> bool) -> bool {
        let patience = self.patience;
        let waiting = poll_fn(|cx| {
            loop {
                if seen(&self.events) {
                    return Poll::Ready(true);
                }
                match self.poll(cx) {
                    Poll::Ready(Ok(Event::End)) if !seen(&self.events) => return Poll::Ready(false),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => panic!("the source failed: {error:?}"),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        timeout(patience, waiting).await.unwrap_or(false)
    }

    /// Settles a delivery.
    pub fn settle(&mut self, tag: Tag, how: Settlement) {
        self.source.settle(tag, how);
    }

    /// Acks deliveries.
    pub fn ack<'a>(&mut self, deliveries: impl IntoIterator<Item = &'a Delivery>) {
        for delivery in deliveries {
            self.settle(delivery.tag, Settlement::Ack);
        }
    }

    /// How many acks of a scope are known not to have reached the broker.
    pub fn unsettled(&self, scope: u64) -> u64 {
        let messages = |event: &Event| match event {
            Event::Unsettled { scope: of, messages } if *of == scope => *messages,
            _ => 0,
        };
        self.events.iter().map(messages).sum()
    }

    /// Waits until all settlements are with the broker, events being handled meanwhile.
    ///
    /// # Panics
    /// When that fails or takes too long.
    pub async fn flush(&mut self) {
        let flushed = timeout(self.patience, poll_fn(|cx| self.source.poll_flush(cx))).await;
        flushed.expect("the source flushes in time").expect("the source flushes");
    }

    /// Closes the source, which must not be used any more.
    ///
    /// # Panics
    /// When that fails or takes too long.
    pub async fn close(&mut self) {
        let closed = timeout(self.patience, poll_fn(|cx| self.source.poll_close(cx))).await;
        closed.expect("the source closes in time").expect("the source closes");
    }
}

/// Polls several members at once until a condition holds; tells whether it did in time.
///
/// # Panics
/// When a source fails.
pub async fn drive_until<S: Source>(
    members: &mut [&mut Driven<S>],
    mut until: impl FnMut(&[&mut Driven<S>]) -> bool,
) -> bool {
    let Some(patience) = members.first().map(|member| member.patience) else { return false };
    let driving = poll_fn(|cx| {
        loop {
            if until(members) {
                return Poll::Ready(());
            }
            let mut moved = false;
            for member in members.iter_mut() {
                match member.poll(cx) {
                    Poll::Ready(Ok(event)) => moved |= event != Event::End,
                    Poll::Ready(Err(error)) => panic!("the source failed: {error:?}"),
                    Poll::Pending => {}
                }
            }
            if !moved {
                return if until(members) { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    });
    timeout(patience, driving).await.is_ok()
}

impl<S> fmt::Debug for Driven<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven")
            .field("buffered", &self.buffer.len())
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}
