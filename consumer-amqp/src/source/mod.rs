//! The source: connects, consumes, and comes back by itself.
//!
//! ```text
//! idle → connecting → running → waiting → connecting → …
//!                  ↘ failed         (the first connection only)
//! running → closing → closed
//! ```
//!
//! The driver's own recovery is not used: it keeps one stream over several channels, where a tag no longer says which
//! channel it belongs to.

mod builder;
mod depth;
mod hold;
mod session;

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::{Delivery, Demand, Event, Settlement, Source, SourceError, Tag, runtime::Ordering};
use tokio::time::{Instant, Sleep, sleep, timeout};

pub use self::builder::AmqpSourceBuilder;
use self::{
    builder::Options,
    hold::Hold,
    session::{Flush, Session},
};
use crate::{
    AmqpAdmin, AmqpPublisher,
    backoff::Backoff,
    error::{AmqpError, Kind, chain},
};

/// What quorum queues let one consumer have; beyond it RabbitMQ is silent and does as it likes.
const QUORUM_PREFETCH: usize = 2_000;

/// With so many in flight, nobody minds if messages wait here instead of in the queue, and so many times as many are asked
/// for: handlers then do not wait for the broker, and an ack can stand for many.
const MANY: usize = 64;
const AHEAD: usize = 4;

/// For a whole session to begin, after the first.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// Consumes a queue. Made by [`AmqpSource::builder`].
///
/// # What it guarantees
/// - A delivery is acked when the runtime says so, and a tag is never named on another channel than its own.
/// - When the connection is lost it comes back by itself, with its topology, waiting 200 ms to 10 s between attempts.
///   What runs meanwhile may finish; its ack has nowhere to go, so the message comes again and the dedup store
///   recognises it.
/// - At most the prefetch is held, here and in the runtime together.
///
/// # What it does not
/// - The first connection is another matter: a refused password, a missing vhost, or a queue that is not what was asked
///   for end the run, and so does a broker that is not reached within
///   [`start_timeout`](AmqpSourceBuilder::start_timeout).
/// - A handler that runs for longer than the broker's `consumer_timeout` costs the channel: everything on it comes
///   again. What only *waits* is handed back before, see [`consumer_timeout`](AmqpSourceBuilder::consumer_timeout).
/// - A flush is done when the broker's channel has the acks. A quorum queue applies 32 at a time: if more than that went
///   out one by one, and the connection breaks at that moment, the rest come again. A close waits for all of them.
/// - Property texts that are not UTF-8 cannot be read through the driver: it ends the connection over them.
///
/// Dropped without [`poll_close`](Source::poll_close), it sends the acks that it knows of and leaves.
pub struct AmqpSource {
    options: Arc<Options>,
    demand: Demand,
    state: State,
    events: VecDeque<Event>,
    /// Ended, and not released by the runtime yet.
    lost: HashSet<u64>,
    backoff: Backoff,
    /// When the first connection was asked for; until it is there, errors end the run.
    starting: Option<Instant>,
    /// Why the last attempt of the start failed: the limit may give the next one no time to learn that again.
    refusal: Option<String>,
    /// An ack was lost since the last flush.
    unsettled: bool,
    flush: Option<Flush>,
}

enum State {
    Idle,
    Connecting(BoxFuture<Result<Session, AmqpError>>),
    Running(Box<Session>),
    Waiting(Pin<Box<Sleep>>),
    Closing(BoxFuture<Result<(), AmqpError>>),
    Closed,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl AmqpSource {
    /// Starts a source at this broker: `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS. The vhost `/` is
    /// written `%2f`, and is the default. Query parameters: `heartbeat` in seconds, `connection_timeout` in milliseconds,
    /// and for TLS `cacertfile`, `certfile` and `keyfile`. A URL that is wrong is reported by
    /// [`build`](AmqpSourceBuilder::build), which never shows it.
    pub fn builder(url: impl AsRef<str>) -> AmqpSourceBuilder {
        AmqpSourceBuilder::new(url.as_ref())
    }

    pub(crate) fn new(options: Arc<Options>) -> Self {
        Self {
            options,
            demand: Demand::new(256),
            state: State::Idle,
            events: VecDeque::new(),
            lost: HashSet::new(),
            backoff: Backoff::default(),
            starting: None,
            refusal: None,
            unsettled: false,
            flush: None,
        }
    }

    /// The name of its queue.
    pub fn queue(&self) -> &str {
        self.options.queue.name()
    }

    /// A publisher to the same broker, as the same user, over a connection of its own.
    ///
    /// # Errors
    /// An [`AmqpError`] with `is_config()`; not after the source was built.
    pub fn publisher(&self) -> Result<AmqpPublisher, AmqpError> {
        AmqpPublisher::with(self.options.connection.clone()).build()
    }

    /// An administration client for the same broker.
    pub fn admin(&self) -> AmqpAdmin {
        AmqpAdmin::with(self.options.connection.clone())
    }

    fn prefetch(&self) -> Result<u16, SourceError> {
        let in_flight = self.demand.max_in_flight;
        let wanted = self.options.prefetch.map_or(in_flight, usize::from);
        let queue = self.queue();
        if self.options.queue.is_quorum() && wanted > QUORUM_PREFETCH {
            return Err(SourceError::new(format!(
                "a prefetch of {wanted} is more than the {QUORUM_PREFETCH} a quorum queue gives one consumer (queue \
                 `{queue}`): lower max_in_flight, set a prefetch, or run several consumers"
            )));
        }
        if self.options.prefetch.is_none() && (MANY..QUORUM_PREFETCH).contains(&in_flight) {
            return Ok((in_flight * AHEAD).min(QUORUM_PREFETCH) as u16);
        }
        u16::try_from(wanted).ok().filter(|prefetch| *prefetch > 0).ok_or_else(|| {
            SourceError::new(format!(
                "a prefetch of {wanted} is none that AMQP can carry (queue `{queue}`): it is 1 to 65,535"
            ))
        })
    }

    fn is_ordered(&self) -> bool {
        !matches!(self.demand.ordering, Ordering::None)
    }

    fn connect(&mut self) -> Result<(), SourceError> {
        let prefetch = self.prefetch()?;
        let hold = Hold::new(self.options.consumer_timeout, self.is_ordered());
        let options = self.options.clone();
        let max_in_flight = self.demand.max_in_flight;
        // A queue without a leader lets everyone wait who asks for it.
        let limit = match self.starting {
            Some(since) => options.start_timeout.saturating_sub(since.elapsed()),
            None => OPEN_LIMIT,
        };
        let before = self.refusal.take().map(|why| format!("; before that: {why}")).unwrap_or_default();
        self.state = State::Connecting(Box::pin(async move {
            let opened = timeout(limit, Session::open(&options, prefetch, max_in_flight, hold)).await;
            opened.unwrap_or_else(|_| {
                let (address, queue) = (options.connection.address(), options.queue.name());
                let error = format!(
                    "rabbitmq at {address} did not let us consume `{queue}` within {limit:.1?}{before}"
                );
                Err(AmqpError::new(Kind::Unreachable, error))
            })
        }));
        Ok(())
    }

    fn connected(&mut self, session: Session) -> Event {
        let address = self.options.connection.address();
        tracing::info!(%address, queue = self.queue(), scope = session.scope, "consuming");
        self.starting = None;
        self.state = State::Running(Box::new(session));
        Event::Connected
    }

    /// What a connection that was not made means.
    fn not_connected(&mut self, error: AmqpError) -> Result<(), SourceError> {
        let wait = self.backoff.next();
        if let Some(since) = self.starting {
            let waited = since.elapsed();
            if !error.is_unreachable() || waited + wait > self.options.start_timeout {
                return Err(error.into());
            }
        }
        let error = chain(&error);
        tracing::error!(%error, queue = self.queue(), "not consuming; trying again in {wait:?}");
        self.refusal = self.starting.map(|_| error);
        self.state = State::Waiting(Box::pin(sleep(wait)));
        Ok(())
    }

    /// What a flush says of acks that were lost since the last one.
    fn take_unsettled(&mut self) -> Result<(), SourceError> {
        if !std::mem::take(&mut self.unsettled) {
            return Ok(());
        }
        let queue = self.queue();
        Err(SourceError::new(format!(
            "the connection to rabbitmq was lost before every ack was known to be with it: messages of `{queue}` may \
             come again"
        )))
    }

    /// The session has ended by itself.
    fn lose(&mut self, error: &AmqpError) {
        let State::Running(session) = std::mem::replace(&mut self.state, State::Idle) else { return };
        self.backoff.lasted(session.since.elapsed());
        let wait = self.backoff.next();
        let error = chain(error);
        tracing::warn!(%error, queue = self.queue(), "connecting again in {wait:?}");
        let lost = session.lose();
        self.unsettled |= lost.unsettled > 0 || !lost.is_certain;
        self.lost.insert(lost.scope);
        self.flush = None;
        // What runs has begun its effect: it may complete it, however long that takes.
        self.events.push_back(Event::Closing { scope: lost.scope, within: Duration::MAX });
        self.events.push_back(Event::Disconnected);
        if lost.unsettled > 0 {
            self.events.push_back(Event::Unsettled { scope: lost.scope, messages: lost.unsettled });
        }
        self.state = State::Waiting(Box::pin(sleep(wait)));
    }
}

impl Source for AmqpSource {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        self.demand = demand;
        if self.is_ordered() && !self.options.queue.is_single_active_consumer() {
            return Err(SourceError::new(format!(
                "an order needs a queue that one consumer has at a time: declare `{}` with single_active_consumer()",
                self.queue()
            )));
        }
        self.prefetch().map(drop)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Ok(event));
            }
            match &mut self.state {
                State::Idle => {
                    self.starting = Some(Instant::now());
                    self.connect()?;
                }
                State::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Ready(Ok(session)) => return Poll::Ready(Ok(self.connected(session))),
                    Poll::Ready(Err(error)) => {
                        if let Err(error) = self.not_connected(error) {
                            self.state = State::Closed;
                            return Poll::Ready(Err(error));
                        }
                    }
                    Poll::Pending => return Poll::Pending,
                },
                State::Running(session) => match session.poll(cx, room, out) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(Event::Delivered)),
                    Poll::Ready(Err(error)) => self.lose(&error),
                    Poll::Pending => return Poll::Pending,
                },
                State::Waiting(wait) => match wait.as_mut().poll(cx) {
                    Poll::Ready(()) => self.connect()?,
                    Poll::Pending => return Poll::Pending,
                },
                State::Closing(_) | State::Closed => return Poll::Ready(Ok(Event::End)),
            }
        }
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        // One that has begun does not tell of this.
        self.flush = None;
        match &mut self.state {
            State::Running(session) if session.scope == tag.scope => session.settle(tag.seq, how),
            // Done, but the channel it came over is gone: it comes again.
            _ if how != Settlement::Nack && self.lost.contains(&tag.scope) => {
                self.unsettled = true;
                self.events.push_back(Event::Unsettled { scope: tag.scope, messages: 1 });
            }
            _ => {}
        }
    }

    fn release(&mut self, scope: u64) {
        self.lost.remove(&scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        if let State::Running(session) = &mut self.state {
            let flush = self.flush.get_or_insert_with(|| session.flush());
            match session.poll_flush(flush, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => self.flush = None,
                Poll::Ready(Err(error)) => {
                    self.lose(&error);
                    self.unsettled = false;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
        Poll::Ready(self.take_unsettled())
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        loop {
            match &mut self.state {
                State::Closing(closing) => {
                    let Poll::Ready(closed) = closing.as_mut().poll(cx) else { return Poll::Pending };
                    self.state = State::Closed;
                    return Poll::Ready(closed.map_err(SourceError::from));
                }
                State::Closed => return Poll::Ready(self.take_unsettled()),
                state => {
                    self.state = match std::mem::replace(state, State::Closed) {
                        State::Running(session) => State::Closing(Box::pin(session.close())),
                        _ => State::Closed,
                    }
                }
            }
        }
    }

    fn lag(&self) -> Option<u64> {
        match &self.state {
            State::Running(session) => session.lag(),
            _ => None,
        }
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting(_) => "connecting",
            Self::Running(_) => "running",
            Self::Waiting(_) => "waiting",
            Self::Closing(_) => "closing",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Debug for AmqpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpSource")
            .field("options", &self.options)
            .field("state", &self.state.name())
            .finish_non_exhaustive()
    }
}
