//! How many messages wait in the queue: asked for now and then.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use lapin::{Channel, types::FieldTable};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::declare::PASSIVE;

const EVERY: Duration = Duration::from_secs(5);

type Answer = Pin<Box<dyn Future<Output = Result<u64, lapin::Error>> + Send>>;

pub(super) struct Depth {
    channel: Channel,
    queue: String,
    last: Option<u64>,
    asked: Option<Answer>,
    next: Pin<Box<Sleep>>,
}

impl Depth {
    pub(super) fn new(channel: Channel, queue: &str) -> Self {
        let next = Box::pin(sleep_until(Instant::now()));
        Self { channel, queue: queue.to_owned(), last: None, asked: None, next }
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        loop {
            match &mut self.asked {
                None => {
                    if self.next.as_mut().poll(cx).is_pending() {
                        return;
                    }
                    self.next.as_mut().reset(Instant::now() + EVERY);
                    self.asked = Some(Box::pin(self.look()));
                }
                Some(answer) => {
                    let Poll::Ready(depth) = answer.as_mut().poll(cx) else { return };
                    // An error is the end of the channel, of which the consumer tells.
                    self.last = depth.ok();
                    self.asked = None;
                }
            }
        }
    }

    pub(super) fn look(&self) -> impl Future<Output = Result<u64, lapin::Error>> + Send + use<> {
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        async move {
            let declared = channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await?;
            Ok(declared.message_count().into())
        }
    }
}
