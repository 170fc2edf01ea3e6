//! One connection with its channel and its consumer, from the first delivery to the loss of it.
//!
//! Delivery tags belong to the channel. So all that is known of them lives and ends with the session, and a tag of an
//! earlier one can never be named to the broker.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use consumer_core::{Delivery, Settlement, Tag};
use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        BasicRejectOptions,
    },
    types::FieldTable,
};
use tokio::time::{Instant, Sleep, sleep};

use super::{builder::Options, depth::Depth, hold::Hold};
use crate::{
    connection::{Opening, close_now},
    declare,
    delivery::Reader,
    error::{AmqpError, Kind},
    window::{Ack, Window},
};

/// How long acks wait for others that go along.
const PAUSE: Duration = Duration::from_millis(10);
/// What is acked and not told comes again after a crash.
const MOST_UNTOLD: usize = 100;
const OK: u16 = 200;
const CONSUME: BasicConsumeOptions =
    BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };

pub(super) type Written = Pin<Box<dyn Future<Output = Result<(), lapin::Error>> + Send>>;

pub(super) struct Session {
    // Dropped in this order: the consumer before its channel, the channel before its connection.
    consumer: Consumer,
    channel: Channel,
    connection: lapin::Connection,
    pub(super) scope: u64,
    pub(super) since: Instant,
    prefetch: u16,
    /// How many may be done and not told without a handler waiting for it.
    spare: usize,
    /// One consumer at a time has the queue.
    single: bool,
    window: Window,
    reader: Reader,
    hold: Hold,
    depth: Depth,
    /// Handed to the driver, and not known to be written to the connection.
    sent: VecDeque<Sent>,
    /// A barrier was passed since the last of them.
    is_certain: bool,
    /// From the first ack that waits on.
    pause: Option<Pin<Box<Sleep>>>,
}

struct Sent {
    ack: Ack,
    written: Written,
}

fn one(seq: u64, messages: u64) -> Ack {
    Ack { tag: seq, multiple: false, messages }
}

/// What a lost session leaves behind.
pub(super) struct Lost {
    pub(super) scope: u64,
    /// Acked or rejected by the runtime, and that is not known to be written to the connection.
    pub(super) unsettled: u64,
    /// Whether the broker has everything else that it was told.
    pub(super) is_certain: bool,
}

impl Session {
    /// Connects, sees to the topology, and consumes.
    pub(super) async fn open(
        options: &Options,
        prefetch: u16,
        max_in_flight: usize,
        hold: Hold,
    ) -> Result<Self, AmqpError> {
        /// Unique in the process: a scope that has ended never comes back.
        static SCOPE: AtomicU64 = AtomicU64::new(1);

        let connection = options.connection.connect("source").await?;
        declare::queue(&connection, &options.queue, options.policy).await?;
        let queue = options.queue.name();
        let channel = declare::channel(&connection).await?;
        let opening = Opening::new(&channel);
        let wrong = |what: &str, error| AmqpError::driver(format!("{what} the queue `{queue}`"), error);
        channel
            .basic_qos(prefetch, BasicQosOptions { global: false })
            .await
            .map_err(|error| wrong("the prefetch cannot be set for", error))?;
        let consumer = channel
            .basic_consume(queue.into(), "".into(), CONSUME, FieldTable::default())
            .await
            .map_err(|error| wrong("rabbitmq does not let us consume from", error))?;
        opening.done();
        let now = Instant::now();
        Ok(Self {
            consumer,
            scope: SCOPE.fetch_add(1, Ordering::Relaxed),
            since: now,
            prefetch,
            spare: (usize::from(prefetch).saturating_sub(max_in_flight) / 4).clamp(1, MOST_UNTOLD),
            single: options.queue.is_single_active_consumer(),
            window: Window::new(),
            reader: Reader::new(queue),
            hold,
            depth: Depth::new(channel.clone(), queue),
            channel,
            connection,
            sent: VecDeque::new(),
            is_certain: true,
            pause: None,
        })
    }

    /// Takes what has come, tells what is done, and hands over at most `room`. Ready when something was handed over.
    ///
    /// # Errors
    /// When the session is over.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<(), AmqpError>> {
        self.receive(cx)?;
        self.tell(cx)?;
        let before = out.len();
        while out.len() - before < room
            && let Some((seq, message)) = self.window.hand_over()
        {
            out.push(Delivery { tag: Tag { scope: self.scope, seq }, message });
        }
        if out.len() > before {
            return Poll::Ready(Ok(()));
        }
        self.depth.poll(cx);
        for seq in self.hold.poll_overdue(cx, &mut self.window) {
            self.requeue(seq);
        }
        Poll::Pending
    }

    /// All there is, whatever the room: the prefetch bounds it, and behind it may be the news that the broker has
    /// cancelled the consumer.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), AmqpError> {
        let mut now = None;
        while let Poll::Ready(next) = self.consumer.poll_next_unpin(cx) {
            let delivery = match next {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => {
                    return Err(AmqpError::driver("the connection to rabbitmq is lost", error));
                }
                None if self.channel.status().connected() => {
                    return Err(AmqpError::new(
                        Kind::Missing,
                        "rabbitmq has cancelled the consumer: its queue was deleted, or its node is gone",
                    ));
                }
                None => return Err(AmqpError::new(Kind::Other, "rabbitmq has closed the channel")),
            };
            let now = *now.get_or_insert_with(Instant::now);
            let tag = delivery.delivery_tag;
            let message = self.reader.message(delivery, self.hold.until(now));
            if !self.window.receive(tag, message, now) {
                return Err(AmqpError::new(
                    Kind::Other,
                    format!("rabbitmq sent the delivery tag {tag} out of turn"),
                ));
            }
        }
        Ok(())
    }

    /// Sends the acks that are due: when there are so many that the broker would soon have nothing to send, when nothing
    /// else is on its way, or when they have waited for a moment. Behind a message that is not done each costs a frame of
    /// its own, and the gap may close.
    fn tell(&mut self, cx: &mut Context<'_>) -> Result<(), AmqpError> {
        self.check_written()?;
        if self.window.done() == 0 {
            return Ok(());
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
        let is_over = pause.as_mut().poll(cx).is_ready();
        if is_over || self.window.done() >= self.spare || self.window.done() == self.window.len() {
            if let Some(ack) = self.window.leading() {
                self.ack(ack);
            }
            if is_over || self.window.done() >= usize::from(self.prefetch / 4).max(1) {
                self.tell_behind();
            }
        }
        if self.window.done() == 0 {
            self.pause = None;
        }
        Ok(())
    }

    fn tell_all(&mut self) {
        if let Some(ack) = self.window.leading() {
            self.ack(ack);
        }
        self.tell_behind();
    }

    fn tell_behind(&mut self) {
        for ack in self.window.take_behind() {
            self.ack(ack);
        }
    }

    fn ack(&mut self, ack: Ack) {
        let channel = self.channel.clone();
        self.send(ack, async move {
            channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await
        });
    }

    /// The driver queues the frame at the first poll; when it is written is looked at later.
    fn send(&mut self, ack: Ack, frame: impl Future<Output = Result<(), lapin::Error>> + Send + 'static) {
        self.is_certain = false;
        let mut written: Written = Box::pin(frame);
        match written.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.sent.push_back(Sent { ack, written: Box::pin(std::future::ready(Err(error))) });
            }
            Poll::Pending => self.sent.push_back(Sent { ack, written }),
        }
    }

    fn check_written(&mut self) -> Result<(), AmqpError> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.poll_written(&mut cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Ready when everything sent so far is written.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AmqpError>> {
        while let Some(first) = self.sent.front_mut() {
            match first.written.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => drop(self.sent.pop_front()),
                Poll::Ready(Err(error)) => {
                    // Its future is done and must not be polled again.
                    first.written = Box::pin(std::future::pending());
                    return Poll::Ready(Err(AmqpError::driver("an ack cannot be sent to rabbitmq", error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Resolves when the broker has taken everything that is settled.
    pub(super) fn flush(&mut self) -> Flush {
        self.tell_all();
        let (channel, prefetch) = (self.channel.clone(), self.prefetch);
        // A channel works off its frames in order, so the answer to a later one tells that it has those before it. (How soon
        // a quorum queue has them is another matter, see `barrier`; that one would disturb a source that goes on.)
        Flush {
            barrier: Box::pin(
                async move { channel.basic_qos(prefetch, BasicQosOptions { global: false }).await },
            ),
        }
    }

    pub(super) fn poll_flush(
        &mut self,
        flush: &mut Flush,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), AmqpError>> {
        let answer = flush.barrier.as_mut().poll(cx);
        if let Poll::Ready(Err(error)) = self.poll_written(cx) {
            return Poll::Ready(Err(error));
        }
        answer.map(|answer| {
            self.is_certain = answer.is_ok();
            answer.map_err(|error| AmqpError::driver("rabbitmq did not take the acks", error))
        })
    }

    pub(super) fn settle(&mut self, seq: u64, how: Settlement) {
        match how {
            Settlement::Ack => {
                self.window.finish(seq);
            }
            // Here it comes again at once, and in its place.
            Settlement::Nack if !self.hold.is_over(&self.window, seq) => self.window.give_back(seq),
            Settlement::Nack | Settlement::Reject => {
                if !self.window.take_out(seq) {
                    return;
                }
                if how == Settlement::Nack {
                    return self.requeue(seq);
                }
                let channel = self.channel.clone();
                let options = BasicRejectOptions { requeue: false };
                self.send(one(seq, 1), async move { channel.basic_reject(seq, options).await });
            }
        }
    }

    /// Back to the queue, from which it comes anew.
    fn requeue(&mut self, seq: u64) {
        let channel = self.channel.clone();
        let options = BasicNackOptions { multiple: false, requeue: true };
        self.send(one(seq, 0), async move { channel.basic_nack(seq, options).await });
    }

    /// What waits at the broker, and here, behind what was handed over.
    pub(super) fn lag(&self) -> Option<u64> {
        Some(self.depth.last()? + self.window.waiting() as u64)
    }

    /// Ends a session that is lost. What is settled is still sent: if only the consumer is gone, it arrives.
    pub(super) fn lose(mut self) -> Lost {
        self.tell_all();
        let _ = self.check_written();
        let unsettled = self.sent.iter().map(|sent| sent.ack.messages).sum();
        Lost { scope: self.scope, unsettled, is_certain: self.is_certain }
    }

    /// Leaves when the broker has taken every ack.
    pub(super) async fn close(mut self) -> Result<(), AmqpError> {
        let failed = |error| AmqpError::driver("rabbitmq did not take leave", error);
        self.tell_all();
        std::future::poll_fn(|cx| self.poll_written(cx)).await?;
        let _second = self.barrier().await.map_err(failed)?;
        self.depth.look().await.map_err(failed)?;
        self.channel.close(OK, "closed".into()).await.map_err(failed)?;
        self.connection.close(OK, "closed".into()).await.map_err(failed)
    }

    /// A channel hands a quorum queue 32 commands at a time and keeps further acks to itself until those are applied; when
    /// it closes it forgets them. Consuming and cancelling are commands that it waits for, and when one is answered, those
    /// before it are applied and the rest is on its way.
    ///
    /// What the queue sends to a consumer that is being cancelled goes back in front of what that one holds. Where order
    /// matters, a second consumer is asked for instead: it only stands by.
    async fn barrier(&mut self) -> Result<Option<Consumer>, lapin::Error> {
        if self.single {
            let queue = self.consumer.queue();
            // Cancelled when it is dropped: not before the channel is closed.
            self.channel.basic_consume(queue, "".into(), CONSUME, FieldTable::default()).await.map(Some)
        } else {
            let cancelled =
                self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions { nowait: false });
            cancelled.await.map(|()| None)
        }
    }
}

pub(super) struct Flush {
    barrier: Written,
}

impl Drop for Session {
    /// A source that is dropped without being closed tells what it can.
    fn drop(&mut self) {
        self.tell_all();
        close_now(&self.channel);
    }
}
