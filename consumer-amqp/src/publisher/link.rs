//! A connection with a channel that confirms, and what is on its way over it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use super::{
    job::Job,
    returns::{Flights, Verdict},
};
use crate::{
    connection::Connection,
    declare,
    error::{AmqpError, is_about_a_frame},
};

type Confirmed = Pin<Box<dyn Future<Output = (u64, Result<Confirmation, lapin::Error>)> + Send>>;

pub(super) struct Link {
    channel: Channel,
    connection: lapin::Connection,
    events: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    confirms: FuturesUnordered<Confirmed>,
    pub(super) flights: Flights<Job>,
    /// Why the broker takes nothing at the moment; the driver sends nothing then.
    pub(super) blocked: Option<String>,
}

impl Link {
    pub(super) async fn open(connection: &Connection) -> Result<Self, AmqpError> {
        Self::over(connection.connect("publisher").await?).await
    }

    /// A new channel over the same connection, when the broker has closed the one there was.
    pub(super) async fn reopen(self) -> Result<Self, AmqpError> {
        Self::over(self.connection).await
    }

    async fn over(connection: lapin::Connection) -> Result<Self, AmqpError> {
        let events = Box::pin(connection.events_listener());
        let channel = declare::channel(&connection).await?;
        channel
            .confirm_select(ConfirmSelectOptions { nowait: false })
            .await
            .map_err(|error| AmqpError::driver("rabbitmq does not confirm publishes", error))?;
        Ok(Self {
            channel,
            connection,
            events,
            confirms: FuturesUnordered::new(),
            flights: Flights::new(),
            blocked: None,
        })
    }

    /// In bytes, as agreed on with the broker.
    pub(super) fn largest_frame(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// Sends it. A publish is in the driver's queue when this returns.
    pub(super) fn send(&mut self, job: Job) {
        let channel = self.channel.clone();
        let (exchange, routing_key) = (job.exchange.clone(), job.routing_key.clone());
        let (payload, properties) = (job.payload.clone(), job.properties.clone());
        let number = self.flights.add(job);
        let mut confirmed: Confirmed = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let sent = channel.basic_publish(exchange, routing_key, options, &payload, properties).await;
            let confirmation = match sent {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (number, confirmation)
        });
        // In the order of the calls: the set below polls in an order of its own.
        let answer = match confirmed.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => confirmed,
            Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        };
        self.confirms.push(answer);
    }

    /// Takes the broker's answers and gives those that are certain, and the error when the channel or the connection is
    /// gone: some may have been answered before it went.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> (Vec<(Job, Verdict)>, Option<lapin::Error>) {
        let mut error = None;
        while let Poll::Ready(Some(event)) = self.events.as_mut().poll_next(cx) {
            match event {
                lapin::Event::ConnectionBlocked(reason) => {
                    tracing::warn!(reason, "rabbitmq takes no messages: publishing waits");
                    self.blocked = Some(reason);
                }
                lapin::Event::ConnectionUnblocked => {
                    tracing::info!("rabbitmq takes messages again");
                    self.blocked = None;
                }
                // The publishes on their way tell of it, and for certain on this channel: the event may come when there is
                // another one.
                lapin::Event::Error(failed) if is_about_a_frame(&failed) => {}
                lapin::Event::Error(failed) => error = error.or(Some(failed)),
                _ => {}
            }
        }
        let mut any = false;
        // Every answer that is there: without the flag, a set that only yields to others could not be told from an
        // empty one.
        let noted = Arc::new(Noted { again: AtomicBool::new(false), waker: cx.waker().clone() });
        let waker = Waker::from(noted.clone());
        loop {
            noted.again.store(false, Ordering::Release);
            match self.confirms.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some((number, Ok(confirmation)))) => {
                    any = true;
                    self.flights.confirmed(number, confirmation);
                }
                Poll::Ready(Some((_, Err(failed)))) => error = error.or(Some(failed)),
                Poll::Ready(None) => break,
                Poll::Pending if noted.again.load(Ordering::Acquire) => {}
                Poll::Pending => break,
            }
        }
        (if any { self.flights.ended() } else { Vec::new() }, error)
    }

    pub(super) async fn close(self) -> Result<(), lapin::Error> {
        self.channel.close(200, "closed".into()).await?;
        self.connection.close(200, "closed".into()).await
    }
}

struct Noted {
    again: AtomicBool,
    waker: Waker,
}

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.again.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }
}
