//! How long a delivery may be held, below the broker's `consumer_timeout`.
//!
//! Past that the broker closes the channel, and everything on it comes again. So what waits for half as long is handed
//! back to the queue, message by message. That lets later messages pass; where an order was asked for, the whole
//! session starts anew instead, which brings everything back in its order.

use std::{future::Future, pin::Pin, task::Context, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    error::{AmqpError, Kind},
    window::Window,
};

pub(super) struct Hold {
    bound: Duration,
    ordered: bool,
    next: Pin<Box<Sleep>>,
}

impl Hold {
    pub(super) fn new(consumer_timeout: Duration, ordered: bool) -> Self {
        let bound = consumer_timeout / 2;
        Self { bound, ordered, next: Box::pin(sleep_until(Instant::now() + bound)) }
    }

    /// Until when a message that comes now may wait.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        if self.ordered { None } else { now.checked_add(self.bound) }
    }

    /// Whether a delivery was held for so long that only the queue can give it anew.
    pub(super) fn is_over(&self, window: &Window, tag: u64) -> bool {
        !self.ordered && window.since(tag).is_some_and(|since| since.elapsed() >= self.bound)
    }

    /// # Errors
    /// When something is held for too long that cannot be handed back on its own.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, window: &Window) -> Result<(), AmqpError> {
        while self.next.as_mut().poll(cx).is_ready() {
            let oldest = if self.ordered { window.oldest() } else { window.oldest_waiting() };
            let due = oldest.unwrap_or_else(Instant::now) + self.bound;
            if due <= Instant::now() {
                return Err(AmqpError::new(
                    Kind::Other,
                    format!(
                        "a delivery was held for {:?}, half of the consumer_timeout: what is held is put back and \
                         consumed anew",
                        self.bound
                    ),
                ));
            }
            self.next.as_mut().reset(due);
        }
        Ok(())
    }
}
