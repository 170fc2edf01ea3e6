//! The source of the in-memory broker.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep_until};

use super::broker::MemoryBroker;
use crate::{Delivery, Event, Settlement, Source, SourceError, Tag};

/// A member of a consumer group of a [`MemoryBroker`].
///
/// A scope is one assignment of one partition; a tag within it counts the deliveries of that assignment. Commits are
/// immediate. A message that is nacked is delivered again by the same assignment at once; if the assignment is being
/// given up, by the next one. Dropped without [`poll_close`](Source::poll_close) it has crashed.
///
/// # Errors
/// [`poll_event`](Source::poll_event) fails when a topic does not exist.
pub struct MemorySource {
    broker: MemoryBroker,
    id: u64,
    group: Arc<str>,
    topics: Vec<Arc<str>>,
    subscribed: bool,
    finite: bool,
    ended: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl MemorySource {
    pub(super) fn new(broker: MemoryBroker, group: &str, topics: Vec<Arc<str>>) -> Self {
        let id = {
            let mut state = broker.lock();
            let group = state.group(group);
            state.new_member(group)
        };
        Self {
            broker,
            id,
            group: group.into(),
            topics,
            subscribed: false,
            finite: false,
            ended: false,
            timer: None,
        }
    }

    /// Ends (with [`Event::End`]) once the group has settled all there is in the topics, delayed messages included.
    #[must_use]
    pub fn finite(mut self) -> Self {
        self.finite = true;
        self
    }

    /// Makes this member fail from outside.
    pub fn crash_handle(&self) -> CrashHandle {
        CrashHandle { broker: self.broker.clone(), id: self.id }
    }

    fn subscribe(&mut self) -> Result<(), SourceError> {
        if self.subscribed {
            return Ok(());
        }
        let mut state = self.broker.lock();
        let mut topics = Vec::with_capacity(self.topics.len());
        for name in &self.topics {
            let Some(topic) = state.topic(name) else {
                return Err(SourceError::new(format!(
                    "group {} cannot read topic {name}: it does not exist at the memory broker",
                    self.group
                )));
            };
            topics.push(topic);
        }
        if let Some(member) = state.members.get_mut(&self.id) {
            member.topics = topics;
        }
        self.subscribed = true;
        Ok(())
    }
}

impl Source for MemorySource {
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        if self.ended {
            return Poll::Ready(Ok(Event::End));
        }
        self.subscribe()?;
        loop {
            let mut state = self.broker.lock();
            state.join(self.id);
            let Some(member) = state.members.get_mut(&self.id).filter(|member| !member.gone) else {
                return Poll::Pending;
            };
            if let Some(event) = member.events.pop_front() {
                return Poll::Ready(Ok(event));
            }
            if room > 0 && state.fetch(self.id, room, out) {
                return Poll::Ready(Ok(Event::Delivered));
            }
            if self.finite && state.all_read(self.id) {
                self.ended = true;
                return Poll::Ready(Ok(Event::End));
            }
            state.park(self.id, cx.waker());
            let deadline = state.next_deadline();
            drop(state);
            let Some(deadline) = deadline else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        self.broker.lock().settle(self.id, tag, how);
    }

    fn release(&mut self, scope: u64) {
        self.broker.lock().release(self.id, scope);
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if self.broker.lock().take_lost(self.id) {
            return Poll::Ready(Err(SourceError::new(format!(
                "not every ack of group {} is with the memory broker: its messages may come again",
                self.group
            ))));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.ended = true;
        self.broker.lock().leave(self.id);
        Poll::Ready(Ok(()))
    }

    fn lag(&self) -> Option<u64> {
        Some(self.broker.lock().ahead(self.id))
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        let mut state = self.broker.lock();
        state.leave(self.id);
        state.members.remove(&self.id);
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySource")
            .field("group", &self.group)
            .field("topics", &self.topics)
            .finish_non_exhaustive()
    }
}

/// Makes a [`MemorySource`] fail from outside.
#[derive(Debug, Clone)]
pub struct CrashHandle {
    broker: MemoryBroker,
    id: u64,
}

impl CrashHandle {
    /// The member is gone for the broker, and nothing it settles counts any more; what it had not committed goes to
    /// others. The source stays pending for ever, as the process is thought dead: drop what drives it.
    pub fn crash(&self) {
        let mut state = self.broker.lock();
        state.leave(self.id);
        if let Some(member) = state.members.get_mut(&self.id) {
            member.gone = true;
            member.events.clear();
        }
    }

    /// The connection is lost and comes back at once: every scope ends with no time left, the member joins again, and
    /// what it had not committed is delivered again.
    pub fn lose_connection(&self) {
        self.broker.lock().disconnect(self.id);
    }
}
