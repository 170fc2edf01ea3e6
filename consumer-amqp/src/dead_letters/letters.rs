//! Dead letters being read: one consumer at a time, whose prefetch bounds it, and what the ones before it hold.
//!
//! A consumer that is full is cancelled and the next is opened: so there is one stream, in the order of the queue, and an ack
//! makes room for nothing but what comes next. Cancelled, a consumer still holds what it has. When the channel closes, the
//! server gives all of it back, sorted within a consumer; the consumers of a channel are taken in the order of their tags as
//! long as they are [`CONSUMERS`]. A `basic.nack` for many would not do: a quorum queue gives back what it names in no order.

use std::{
    collections::HashSet,
    fmt,
    future::ready,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use consumer_core::dead_letters::{BoxFuture, DeadLetter, DeadLettersError, Letters, Place, Settled};
use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::{Instant, sleep, timeout};

use super::death;
use crate::{
    connection::{Opening, close_now},
    declare::{self, PASSIVE},
    delivery::Reader,
    error::AmqpError,
};

/// What a quorum queue lets one consumer have.
const PREFETCH: u16 = 2_000;
/// More than these the server closes in an order of its own: Erlang keeps a map sorted up to 32 keys.
const CONSUMERS: usize = 32;
/// After so long without a message it is asked whether there are any.
const QUIET: Duration = Duration::from_millis(200);
/// There are some, and they do not come.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what is given back to be in the queue again: with a consumer of others there, it may never be seen there.
const BACK: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(5);
const OK: u16 = 200;
const CONSUME: BasicConsumeOptions =
    BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };

pub(super) struct AmqpLetters {
    queue: String,
    notice: String,
    expected: u64,
    read: u64,
    reader: Reader,
    reading: Reading,
    /// In the order they were opened; the last has the consumer that is read.
    channels: Vec<Held>,
    // Dropped after what lives on it.
    connection: Arc<lapin::Connection>,
}

/// A channel, and what its consumers hold.
struct Held {
    channel: Channel,
    consumers: usize,
    last: u64,
    unsettled: HashSet<u64>,
}

/// The consumer that is read.
struct Active {
    consumer: Consumer,
    /// What it holds: tags from here on.
    from: u64,
    unsettled: usize,
}

type Opened = Result<(Channel, Consumer), AmqpError>;

enum Reading {
    Active(Active),
    /// Kept here, so that a call that is dropped drops nothing of it. (In a mutex that nobody locks, for `Sync`.)
    Opening(Mutex<BoxFuture<Opened>>),
    Failed,
}

impl AmqpLetters {
    pub(super) async fn open(
        connection: lapin::Connection,
        queue: &str,
        expected: u64,
        notice: String,
    ) -> Result<Self, AmqpError> {
        let connection = Arc::new(connection);
        let (channel, consumer) = consume(connection.clone(), None, queue.to_owned()).await?;
        Ok(Self {
            queue: queue.to_owned(),
            notice,
            expected,
            read: 0,
            reader: Reader::new(queue),
            reading: Reading::Active(Active { consumer, from: 1, unsettled: 0 }),
            channels: vec![Held::new(channel)],
            connection,
        })
    }

    /// The channel and consumer that are read, when they are there.
    async fn active(&mut self) -> Result<(&mut Held, &mut Active), DeadLettersError> {
        if let Reading::Opening(opening) = &mut self.reading {
            let opened = opening.get_mut().unwrap_or_else(PoisonError::into_inner).await;
            self.reading = Reading::Failed;
            let (channel, consumer) = opened?;
            match self.channels.last_mut().filter(|held| held.channel.id() == channel.id()) {
                Some(held) => held.consumers += 1,
                None => self.channels.push(Held::new(channel)),
            }
            let from = self.channels.last().map_or(0, |held| held.last) + 1;
            self.reading = Reading::Active(Active { consumer, from, unsettled: 0 });
        }
        match (&mut self.reading, self.channels.last_mut()) {
            (Reading::Active(active), Some(held)) => Ok((held, active)),
            _ => Err(DeadLettersError::unavailable(format!(
                "the queue `{}` is no longer read: reading has failed before",
                self.queue
            ))),
        }
    }

    /// The next message: `None` when the consumer is full or the queue has none.
    async fn receive(&mut self) -> Result<Option<Delivery>, DeadLettersError> {
        let queue = self.queue.clone();
        let (held, active) = self.active().await?;
        let since = Instant::now();
        let mut answer = None;
        while !active.is_full() {
            let wait = if answer.is_some() { Duration::ZERO } else { QUIET };
            if let Ok(next) = timeout(wait, active.consumer.next()).await {
                let delivery = next.ok_or_else(|| ended(&queue))?.map_err(|error| lost(&queue, error))?;
                held.last = delivery.delivery_tag;
                held.unsettled.insert(delivery.delivery_tag);
                active.unsettled += 1;
                return Ok(Some(delivery));
            }
            match answer.take() {
                None => {
                    let looked = async {
                        match look(&held.channel, &queue).await? {
                            // The server's channel may answer before it sends what it was just given. That is sent before
                            // it comes to the next question.
                            (0, _) => look(&held.channel, &queue).await,
                            some => Ok(some),
                        }
                    };
                    answer = Some(looked.await.map_err(|error| lost(&queue, error))?);
                }
                // With no consumer, not even ours, it is the answer of a server that does not reach the queue.
                Some((0, 1..)) => break,
                Some((ready, _)) if since.elapsed() >= PATIENCE => return Err(shut_out(&queue, ready)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Cancels the consumer that is full, and opens the next.
    fn turn(&mut self) {
        let (Reading::Active(full), Some(held)) =
            (std::mem::replace(&mut self.reading, Reading::Failed), self.channels.last_mut())
        else {
            return;
        };
        let (connection, queue) = (self.connection.clone(), self.queue.clone());
        let (channel, consumers) = (held.channel.clone(), held.consumers);
        self.reading = Reading::Opening(Mutex::new(Box::pin(async move {
            cancel(&channel, &full.consumer)
                .await
                .map_err(|error| AmqpError::driver("a consumer cannot be cancelled", error))?;
            let same = (consumers < CONSUMERS).then_some((channel, consumers));
            consume(connection, same, queue).await
        })));
    }

    fn channel_of(&self, place: Place) -> Option<&Channel> {
        self.channels.get(usize::try_from(place.scope).ok()?).map(|held| &held.channel)
    }

    fn acked(&mut self, place: Place) -> Option<&Channel> {
        let index = usize::try_from(place.scope).ok()?;
        let is_last = index + 1 == self.channels.len();
        let held = self.channels.get_mut(index)?;
        if !held.unsettled.remove(&place.seq) {
            return None;
        }
        if let Reading::Active(active) = &mut self.reading
            && is_last
            && place.seq >= active.from
        {
            active.unsettled -= 1;
        }
        Some(&held.channel)
    }

    async fn finish(mut self) -> Result<(), lapin::Error> {
        // What was returned once lies apart in a quorum queue: a part of it returned again would come behind the rest. So all
        // of it is taken before any goes back. Cancelled before that, a consumer gives what is on its way back in front of
        // what it holds.
        while let Ok(Some(_)) = self.next().await {}
        while let Ok(Some(_)) = self.receive().await {}
        // A server's channel hands a quorum queue 32 acks at a time, keeps further ones until those are applied, and forgets
        // them when it closes. An answer of each channel tells that the first are with the queue. Cancelling is a command that
        // the queue answers when all before it are applied: then the others are on their way.
        for held in &self.channels {
            look(&held.channel, &self.queue).await?;
        }
        if let (Reading::Active(active), Some(held)) = (&self.reading, self.channels.last()) {
            cancel(&held.channel, &active.consumer).await?;
        }
        let looking = self.connection.create_channel().await?;
        // One after another, and each when what the one before it held is there.
        for held in &self.channels {
            let before = look(&looking, &self.queue).await?;
            held.channel.close(OK, "closed".into()).await?;
            if !held.unsettled.is_empty() {
                until_back(&looking, &self.queue, held.unsettled.len() as u64, before).await?;
            }
        }
        looking.close(OK, "closed".into()).await?;
        self.connection.close(OK, "closed".into()).await
    }
}

/// Without a close all goes back too, what one channel holds in its order; which channel comes first, and what was still on
/// its way, is the broker's choice.
impl Drop for AmqpLetters {
    fn drop(&mut self) {
        for held in &self.channels {
            close_now(&held.channel);
        }
    }
}

impl Held {
    fn new(channel: Channel) -> Self {
        Self { channel, consumers: 1, last: 0, unsettled: HashSet::new() }
    }
}

impl Active {
    fn is_full(&self) -> bool {
        self.unsettled >= usize::from(PREFETCH)
    }
}

/// A further consumer on a channel that has so many, or on a new one.
async fn consume(connection: Arc<lapin::Connection>, on: Option<(Channel, usize)>, queue: String) -> Opened {
    let wrong = |error| AmqpError::driver(format!("rabbitmq does not let us consume from `{queue}`"), error);
    let is_new = on.is_none();
    let (channel, number) = match on {
        Some(known) => known,
        None => (declare::channel(&connection).await?, 0),
    };
    let opening = Opening::new(&channel);
    if is_new {
        channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await.map_err(wrong)?;
    }
    // In their order as texts: it is the order in which the server takes them when the channel closes.
    let tag = format!("dead-letters-{number:02}");
    let consumer = channel
        .basic_consume(queue.as_str().into(), tag.into(), CONSUME, FieldTable::default())
        .await
        .map_err(wrong)?;
    opening.done();
    Ok((channel, consumer))
}

async fn cancel(channel: &Channel, consumer: &Consumer) -> Result<(), lapin::Error> {
    channel.basic_cancel(consumer.tag(), BasicCancelOptions { nowait: false }).await
}

/// How many messages are ready, and how many consumers there are.
async fn look(channel: &Channel, queue: &str) -> Result<(u64, u32), lapin::Error> {
    let declared = channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await?;
    Ok((declared.message_count().into(), declared.consumer_count()))
}

/// Waits until what a closed channel held is ready again. A quorum queue does this a moment after the answer, and counts a
/// consumer that is cancelled until then; a classic queue does it before.
async fn until_back(
    channel: &Channel,
    queue: &str,
    held: u64,
    before: (u64, u32),
) -> Result<(), lapin::Error> {
    let since = Instant::now();
    loop {
        let (ready, consumers) = look(channel, queue).await?;
        if consumers < before.1 || ready >= before.0 + held || since.elapsed() > BACK {
            return Ok(());
        }
        sleep(AGAIN).await;
    }
}

fn lost(queue: &str, error: lapin::Error) -> DeadLettersError {
    DeadLettersError::unavailable(format!(
        "rabbitmq has ended the reading of `{queue}`: what is not settled is back in the queue"
    ))
    .with_source(error)
}

fn ended(queue: &str) -> DeadLettersError {
    DeadLettersError::unavailable(format!(
        "rabbitmq has cancelled the reading of `{queue}`: it was deleted, its node is gone, or the channel was closed over \
         a letter that was held for too long"
    ))
}

fn shut_out(queue: &str, ready: u64) -> DeadLettersError {
    DeadLettersError::new(format!(
        "{ready} messages are ready in `{queue}` and none comes: another consumer has it alone (single active consumer), or \
         its node is gone"
    ))
}

#[async_trait]
impl Letters for AmqpLetters {
    fn expected(&self) -> Option<u64> {
        Some(self.expected)
    }

    fn notice(&self) -> Option<&str> {
        Some(&self.notice)
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        while self.read < self.expected {
            if let Some(delivery) = self.receive().await? {
                self.read += 1;
                let place = Place { scope: self.channels.len() as u64 - 1, seq: delivery.delivery_tag };
                let death = death::latest(&delivery.properties);
                return Ok(Some(
                    DeadLetter::new(place, self.reader.message(delivery, None)).with_death(death),
                ));
            }
            match &self.reading {
                Reading::Active(active) if active.is_full() => self.turn(),
                _ => break,
            }
        }
        Ok(None)
    }

    fn settle(&mut self, place: Place, _how: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        let queue = self.queue.clone();
        if !self.connection.status().connected() {
            let what = format!("the connection to rabbitmq is gone: the letter is back in `{queue}`");
            return Box::pin(ready(Err(DeadLettersError::unavailable(what))));
        }
        // Before it counts as settled: asked again, an error stays one.
        if self.channel_of(place).is_some_and(|channel| !channel.status().connected()) {
            let what = format!("rabbitmq has closed the channel of this letter: it is back in `{queue}`");
            return Box::pin(ready(Err(DeadLettersError::unavailable(what))));
        }
        // None where it was settled before.
        let Some(channel) = self.acked(place).cloned() else { return Box::pin(ready(Ok(()))) };
        let mut written: BoxFuture<_> = Box::pin(async move {
            let acked = channel.basic_ack(place.seq, BasicAckOptions { multiple: false }).await;
            acked.map_err(|error| lost(&queue, error))
        });
        // The driver queues the frame at the first poll.
        match written.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Box::pin(ready(answer)),
            Poll::Pending => written,
        }
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        let queue = self.queue.clone();
        self.finish().await.map_err(|error| {
            DeadLettersError::unavailable(format!(
                "rabbitmq did not take leave of `{queue}`: letters settled last may come again"
            ))
            .with_source(error)
        })
    }
}

impl fmt::Debug for AmqpLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpLetters")
            .field("queue", &self.queue)
            .field("expected", &self.expected)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}
