//! Presents one delivery to the stack, again and again until it is settled or handed back.

use std::time::Duration;

use super::{
    Config, Stack,
    finished::{Ending, Place},
};
use crate::{Failure, Message, Outcome};

/// How failures that leave the stack are presented again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    first_wait: Duration,
    longest_wait: Duration,
    discard_after: Option<u32>,
}

impl Again {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            first_wait: config.first_wait,
            longest_wait: config.longest_wait,
            discard_after: config.discard_after,
        }
    }

    fn wait(&self, presentations: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << (presentations - 1).min(20));
        doubled.min(self.longest_wait)
    }
}

/// `presentations` are those before, when a task of this delivery was lost to a panic.
pub(super) async fn present<S: Stack>(mut stack: S, place: Place, again: Again, mut presentations: u32) {
    let Some(mut message) = place.message().cloned() else { return };
    // A message that is handed back has not failed: only failures use up what `discard_after` grants.
    let mut failures = presentations;
    if presentations > 0 && !wait(&message, again.wait(presentations)).await {
        return place.finish(Ending::Returned);
    }
    loop {
        let failure = match call(&mut stack, message).await {
            None => return place.finish(Ending::Returned),
            Some(Ok(outcome)) => return place.finish(Ending::Settled(outcome)),
            Some(Err(failure)) => failure,
        };
        presentations += 1;
        let Some(original) = place.message().cloned() else { return };
        message = original;
        if message.cancellation().is_cancelled() || (failure.is_cancelled() && message.is_overdue()) {
            return place.finish(Ending::Returned);
        }
        failures += u32::from(!failure.is_cancelled());
        if !failure.is_cancelled() && again.discard_after.is_some_and(|limit| failures >= limit) {
            tracing::error!(
                origin = %message.origin(),
                error = %failure.chain(),
                failures,
                "message is discarded: its failure left the stack too often"
            );
            if let Some(seat) = failure.seat() {
                seat.leave_unheard();
            }
            return place.finish(Ending::Discarded);
        }
        let pause = again.wait(presentations);
        tracing::warn!(
            origin = %message.origin(),
            error = %failure.chain(),
            wait = ?pause,
            "failure left the stack: the message will be presented again"
        );
        // Its claim must not be renewed while the message waits out here.
        drop(failure);
        if !wait(&message, pause).await {
            return place.finish(Ending::Returned);
        }
    }
}

/// `None` when the message was cancelled before the stack was ready for it.
async fn call<S: Stack>(stack: &mut S, message: Message) -> Option<Result<Outcome, Failure>> {
    if let Err(failure) = message.until_ready(stack).await? {
        return Some(Err(failure));
    }
    Some(stack.call(message).await.map(Into::into).map_err(Failure::from_error))
}

async fn wait(message: &Message, pause: Duration) -> bool {
    message.wait_or_cancelled(tokio::time::sleep(pause)).await.is_some()
}
