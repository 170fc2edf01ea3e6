//! How long a delivery may be held, below the broker's `consumer_timeout`.
//!
//! Past that the broker closes the channel, and everything on it comes again. So what waits for half as long is handed
//! back to the queue, message by message. That lets later messages pass: where an order was asked for, nothing is handed
//! back, and what waits for longer than the broker's patience costs the channel, after which everything comes again in
//! its order.

use std::{future::Future, pin::Pin, task::Context, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::window::Window;

pub(super) struct Hold {
    /// None where an order was asked for.
    bound: Option<Duration>,
    next: Option<Pin<Box<Sleep>>>,
}

impl Hold {
    pub(super) fn new(consumer_timeout: Duration, ordered: bool) -> Self {
        Self { bound: (!ordered).then(|| consumer_timeout / 2), next: None }
    }

    /// Until when a message that comes now may wait.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.bound?)
    }

    /// Whether a delivery was held for so long that only the queue can give it anew.
    pub(super) fn is_over(&self, window: &Window, tag: u64) -> bool {
        let held = || window.since(tag).is_some_and(|since| Some(since.elapsed()) >= self.bound);
        self.bound.is_some() && held()
    }

    /// What waits for room, and has waited for too long.
    pub(super) fn poll_overdue(&mut self, cx: &mut Context<'_>, window: &mut Window) -> Vec<u64> {
        let mut overdue = Vec::new();
        let Some(bound) = self.bound else { return overdue };
        while let Some(oldest) = window.oldest_waiting()
            && let Some(due) = oldest.checked_add(bound)
        {
            let next = self.next.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if next.deadline() != due {
                next.as_mut().reset(due);
            }
            if next.as_mut().poll(cx).is_pending() {
                break;
            }
            overdue.extend(window.take_waiting(oldest));
        }
        overdue
    }
}
