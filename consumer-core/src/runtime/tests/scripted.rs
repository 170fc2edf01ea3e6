//! A source that does what a test says, beyond what the in-memory broker can be made to do.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{Delivery, Demand, Event, Message, Settlement, Source, SourceError, Tag};

/// What the source is told, and what it was told by the runtime. Clones share both.
#[derive(Clone, Default)]
pub(super) struct Script(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    steps: VecDeque<Step>,
    /// Delivers without end in this scope, as a busy partition does.
    endless: Option<(u64, u64)>,
    settled: Vec<(Tag, Settlement)>,
    released: Vec<u64>,
    closed: bool,
    never_closes: bool,
    waker: Option<Waker>,
    hold: Option<Duration>,
    refuses: bool,
    polls: usize,
}

pub(super) enum Step {
    Deliver(Tag),
    Event(Event),
    Error(&'static str),
}

impl Script {
    pub(super) fn then(&self, step: Step) {
        let mut content = self.0.lock().unwrap();
        content.steps.push_back(step);
        if let Some(waker) = content.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn deliver(&self, scope: u64, seq: u64) {
        self.then(Step::Deliver(Tag { scope, seq }));
    }

    pub(super) fn endless(&self, scope: u64) {
        let mut content = self.0.lock().unwrap();
        content.endless = Some((scope, 0));
        if let Some(waker) = content.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn settled(&self) -> Vec<(Tag, Settlement)> {
        self.0.lock().unwrap().settled.clone()
    }

    pub(super) fn released(&self) -> Vec<u64> {
        self.0.lock().unwrap().released.clone()
    }

    /// Deliveries may be held for so long.
    pub(super) fn hold_for(&self, hold: Duration) {
        self.0.lock().unwrap().hold = Some(hold);
    }

    /// Cannot give what any run demands.
    pub(super) fn refuses(&self) {
        self.0.lock().unwrap().refuses = true;
    }

    pub(super) fn never_closes(&self) {
        self.0.lock().unwrap().never_closes = true;
    }

    /// How often it was asked for events.
    pub(super) fn polls(&self) -> usize {
        self.0.lock().unwrap().polls
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().unwrap().closed
    }
}

impl Source for Script {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        match self.0.lock().unwrap().refuses {
            true => Err(SourceError::new(format!("no {demand:?}"))),
            false => Ok(()),
        }
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        let mut content = self.0.lock().unwrap();
        content.polls += 1;
        let hold = content.hold;
        let message = |tag: Tag| {
            let number = tag.seq.to_string();
            let message = Message::builder().payload(number.clone()).id(number).key("k");
            match hold {
                Some(hold) => message.hold_until(Instant::now() + hold).build(),
                None => message.build(),
            }
        };
        match content.steps.front() {
            Some(Step::Deliver(_)) if room == 0 => {}
            Some(_) => {
                return Poll::Ready(match content.steps.pop_front() {
                    Some(Step::Deliver(tag)) => {
                        out.push(Delivery { tag, message: message(tag) });
                        Ok(Event::Delivered)
                    }
                    Some(Step::Event(event)) => Ok(event),
                    Some(Step::Error(error)) => Err(SourceError::new(error)),
                    None => Ok(Event::End),
                });
            }
            None => {
                if let Some((scope, seq)) = content.endless.as_mut().filter(|_| room > 0) {
                    *seq += 1;
                    let tag = Tag { scope: *scope, seq: *seq };
                    out.push(Delivery { tag, message: message(tag) });
                    return Poll::Ready(Ok(Event::Delivered));
                }
            }
        }
        content.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        self.0.lock().unwrap().settled.push((tag, how));
    }

    fn release(&mut self, scope: u64) {
        self.0.lock().unwrap().released.push(scope);
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        let mut content = self.0.lock().unwrap();
        content.closed = true;
        if content.never_closes { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}
