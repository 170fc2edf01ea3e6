//! The loop that owns the source.
//!
//! One task polls everything: what has finished is settled, what the source reports is acted on, and what it delivers
//! is started. No step waits for another, so a revoked partition is seen however full the consumer is.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Config, Report, RunError, Stack,
    finished::{Ending, Finished, Inbox, Place},
    health::Health,
    idle::Idle,
    lanes::{Executor, Job},
    meter::Meter,
    ordering::Queues,
    present::Again,
    scopes::Scopes,
};
use crate::{
    Delivery, Demand, Event, Failure, Settlement, Source, SourceError, Tag, failure::chain, scope::Run,
    time::LONGEST,
};

/// How long a dropped task may take to be gone; one that blocks its thread never is.
const DROP_GRACE: Duration = Duration::from_secs(2);
/// How long dropping, the stores and the source may take together, after the last message is done or the drain is over.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How often gauges and health are brought up to date when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Rounds in one go before other tasks get their turn.
const ROUNDS: usize = 32;

pub(super) struct Driver<Src, S> {
    source: Src,
    stack: S,
    health: Health,
    config: Config,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
    run: Arc<Run>,
    scopes: Scopes,
    queues: Queues,
    executor: Executor<S>,
    inbox: Arc<Inbox>,
    meter: Meter,
    /// Presentations of deliveries whose task was lost, by their tag.
    lost: HashMap<Tag, u32>,
    held: usize,
    report: Report,
    idle: Idle,
    connected: bool,
    paused: bool,
    was_ready: bool,
    settled: bool,
    /// The source has said that nothing follows.
    ended: bool,
    stop: Option<Stop>,
    timer: Pin<Box<Sleep>>,
    /// Reused from round to round.
    finished: Vec<Finished>,
    delivered: Vec<Delivery>,
}

/// A stop that was asked for.
struct Stop {
    drop_at: Instant,
    dropped: bool,
    error: Option<SourceError>,
}

/// However the run ends, also by a panic or dropped half way, probes are told.
impl<Src, S> Drop for Driver<Src, S> {
    fn drop(&mut self) {
        self.health.set_ended();
    }
}

impl<Src: Source, S: Stack> Driver<Src, S> {
    pub(super) fn new(
        source: Src,
        stack: S,
        health: Health,
        config: Config,
        shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> Self {
        let run = Run::ordered(config.ordering);
        Self {
            source,
            stack,
            health,
            shutdown,
            scopes: Scopes::new(run.clone()),
            run,
            queues: Queues::new(config.ordering),
            executor: Executor::new(config.lanes, Again::new(&config)),
            inbox: Arc::default(),
            meter: Meter::new(&config.name),
            lost: HashMap::new(),
            held: 0,
            report: Report::default(),
            idle: Idle::new(config.idle),
            connected: false,
            paused: false,
            was_ready: false,
            settled: false,
            ended: false,
            stop: None,
            timer: Box::pin(sleep_until(Instant::now() + TICK)),
            finished: Vec::new(),
            delivered: Vec::new(),
            config,
        }
    }

    pub(super) async fn run(mut self) -> Result<Report, RunError> {
        let demand = Demand::new(self.config.max_in_flight).ordered(self.config.ordering);
        if let Err(error) = self.source.configure(demand) {
            self.begin_stop(Some(error));
            self.ended = true;
        } else if let Some(why) = poll_fn(|cx| Poll::Ready(self.refusal(cx))).await {
            self.begin_stop(Some(SourceError::new(why)));
            self.ended = true;
        }
        poll_fn(|cx| self.poll_drained(cx)).await;
        // All that follows has one bound together, and what the drop took is part of it.
        let now = Instant::now();
        let drained = self.stop.as_ref().map_or(now, |stop| stop.drop_at.min(now));
        let close_by = drained + CLOSE_LIMIT;
        // What could not be dropped blocks its thread: the message is unsettled and comes again.
        self.report.returned += self.held as u64;
        self.report.retried = self.run.retried();
        // A store that does not answer leaves the source time for its last commit.
        if !self.run.flush_stores((close_by - now) / 2).await {
            tracing::warn!("the dedup store did not answer before the end: claims end with their leases");
        }
        let closing = tokio::time::timeout_at(close_by, poll_fn(|cx| self.source.poll_close(cx)));
        match closing.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "the source did not close cleanly"),
            Err(_) => tracing::warn!("the source did not close in time: what was acked last may come again"),
        }
        match self.stop.take().and_then(|stop| stop.error) {
            Some(error) => Err(RunError::new(self.report, error)),
            None => Ok(self.report),
        }
    }

    /// Why a layer will have no such run, known before the source is polled for the first time.
    fn refusal(&mut self, cx: &mut Context<'_>) -> Option<&'static str> {
        let _answered_when_messages_may_come = self.poll_stack(cx);
        match self.run.poll_refused(cx) {
            Poll::Ready(why) => Some(why),
            Poll::Pending => None,
        }
    }

    /// Whether the stack is ready. Until it was for the first time, its layers see the run meanwhile.
    fn poll_stack(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.was_ready {
            return self.stack.poll_ready(cx).map_err(Failure::from_error);
        }
        let ready = self.run.asking(|| self.stack.poll_ready(cx)).map_err(Failure::from_error);
        self.was_ready = matches!(ready, Poll::Ready(Ok(())));
        ready
    }

    /// Ready when the consumer has stopped and nothing is held any more.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            let finished = self.take_finished(cx);
            self.poll_stop(cx);
            let delivered = self.poll_source(cx);
            self.executor.flush();
            self.observe();
            if self.is_drained() {
                return Poll::Ready(());
            }
            if !finished && !delivered && self.poll_timer(cx).is_pending() {
                return Poll::Pending;
            }
        }
        // A source that always has something must not put off what is due.
        let _ = self.poll_timer(cx);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_drained(&self) -> bool {
        let over = self.stop.as_ref().is_some_and(|stop| stop.drop_at + DROP_GRACE <= Instant::now());
        over || (self.held == 0 && (self.ended || self.stop.is_some()))
    }

    fn take_finished(&mut self, cx: &mut Context<'_>) -> bool {
        let mut finished = std::mem::take(&mut self.finished);
        let any = self.inbox.swap(cx, &mut finished);
        for done in finished.drain(..) {
            self.executor.finished(done.slot);
            self.finish(done);
        }
        self.finished = finished;
        any
    }

    fn finish(&mut self, done: Finished) {
        let Finished { tag, lane, ending, .. } = done;
        let settlement = match ending {
            Ending::Settled(outcome) => {
                self.report.count(outcome);
                Settlement::Ack
            }
            Ending::Returned => {
                self.report.returned += 1;
                Settlement::Nack
            }
            Ending::Dropped(message) => {
                if self.stop.is_none() && !self.scopes.is_closed(tag.scope) {
                    return self.start_again(Delivery { tag, message }, lane);
                }
                self.report.returned += 1;
                Settlement::Nack
            }
            Ending::Discarded => {
                self.report.discarded += 1;
                self.meter.discarded();
                Settlement::Reject
            }
        };
        if !self.lost.is_empty() {
            self.lost.remove(&tag);
        }
        self.settle(tag, settlement);
        if let Some(lane) = lane
            && let Some(next) = self.queues.next(lane)
        {
            self.start(next, Some(lane), 0, None);
        }
    }

    /// The task of a delivery is gone without an answer: its handler panicked, and no layer caught it.
    fn start_again(&mut self, delivery: Delivery, lane: Option<u64>) {
        let presentations = self.lost.entry(delivery.tag).or_insert(0);
        *presentations += 1;
        let presentations = *presentations;
        let origin = delivery.message.origin();
        tracing::error!(%origin, presentations, "a handler panicked: its message will be presented again");
        self.start(delivery, lane, presentations, None);
    }

    /// Tells the broker, and the source when this was the last of a closed scope.
    fn settle(&mut self, tag: Tag, settlement: Settlement) {
        self.settled = true;
        self.held -= 1;
        self.source.settle(tag, settlement);
        if self.scopes.done(tag.scope) {
            self.source.release(tag.scope);
        }
        self.idle.reset();
    }

    fn start(&mut self, delivery: Delivery, lane: Option<u64>, presentations: u32, ready: Option<S>) {
        let Delivery { tag, message } = delivery;
        let scope = self.scopes.scope(tag.scope);
        let slot = self.executor.slot();
        let message = message.with_scope(scope.clone());
        let place = Place::new(self.inbox.clone(), tag, lane, slot, message);
        let stack = ready.unwrap_or_else(|| self.stack.clone());
        self.executor.start(slot, Job { stack, place, scope, presentations });
    }

    /// Takes what the source has to say. True if it may have more.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ended {
            return false;
        }
        let (room, mut ready) = self.room(cx);
        let mut delivered = std::mem::take(&mut self.delivered);
        let event = self.source.poll_event(cx, room, &mut delivered);
        if !delivered.is_empty() {
            self.report.received += delivered.len() as u64;
            self.meter.received(delivered.len());
            self.held += delivered.len();
            self.idle.reset();
        }
        for delivery in delivered.drain(..) {
            self.scopes.hold(delivery.tag.scope);
            match self.queues.lane_of(&delivery) {
                None => self.start(delivery, None, 0, ready.take()),
                Some(lane) => {
                    if let Some(first) = self.queues.admit(lane, delivery) {
                        self.start(first, Some(lane), 0, ready.take());
                    }
                }
            }
        }
        self.delivered = delivered;
        match event {
            Poll::Pending => false,
            Poll::Ready(Ok(event)) => {
                self.act_on(event);
                true
            }
            Poll::Ready(Err(error)) => {
                tracing::error!(error = %chain(&error), "the source cannot go on");
                self.begin_stop(Some(error));
                self.ended = true;
                true
            }
        }
    }

    /// How many deliveries may come, and the stack that was made ready for the first of them. What its readiness
    /// reserves is given back when nothing comes.
    fn room(&mut self, cx: &mut Context<'_>) -> (usize, Option<S>) {
        let room = self.config.max_in_flight.saturating_sub(self.held);
        if room == 0 || self.stop.is_some() {
            return (0, None);
        }
        match self.poll_stack(cx) {
            Poll::Ready(Ok(())) => {
                if std::mem::replace(&mut self.paused, false) {
                    tracing::info!("the stack is ready again");
                    self.idle.reset();
                }
                let next = self.stack.clone();
                (room, Some(std::mem::replace(&mut self.stack, next)))
            }
            Poll::Pending => {
                if !std::mem::replace(&mut self.paused, true) {
                    tracing::info!("paused: the stack is not ready");
                }
                (0, None)
            }
            Poll::Ready(Err(failure)) => {
                let error = SourceError::new("the stack is broken: it cannot become ready");
                self.begin_stop(Some(error.with_source(failure.into_error())));
                (0, None)
            }
        }
    }

    fn act_on(&mut self, event: Event) {
        match event {
            Event::Delivered => {}
            Event::Connected => {
                self.connected = true;
                self.health.set_connected(true);
                self.idle.reset();
            }
            Event::Disconnected => {
                self.connected = false;
                self.health.set_connected(false);
            }
            Event::Closing { scope, within } => self.close_scope(scope, within),
            Event::Unsettled { scope, messages } => {
                self.meter.unsettled(messages);
                tracing::warn!(
                    scope,
                    messages,
                    "settlements did not reach the broker: the messages may be delivered again"
                );
            }
            Event::End => self.ended = true,
        }
    }

    fn close_scope(&mut self, scope: u64, within: Duration) {
        if self.scopes.close(scope, Instant::now() + within.min(LONGEST)) {
            self.source.release(scope);
            return;
        }
        for delivery in self.queues.take(|s| s == scope) {
            self.hand_back(delivery.tag);
        }
    }

    /// A delivery that was held and never started.
    fn hand_back(&mut self, tag: Tag) {
        self.report.returned += 1;
        self.settle(tag, Settlement::Nack);
    }

    fn begin_stop(&mut self, error: Option<SourceError>) {
        if let Some(stop) = &mut self.stop {
            stop.error = stop.error.take().or(error);
            return;
        }
        tracing::info!(held = self.held, drain = ?self.config.drain, "stopping");
        self.report.in_flight_at_stop = self.held as u64;
        self.health.set_stopping();
        self.stop = Some(Stop { drop_at: Instant::now() + self.config.drain, dropped: false, error });
        self.scopes.cancel_all();
        for delivery in self.queues.take(|_| true) {
            self.hand_back(delivery.tag);
        }
    }

    fn poll_stop(&mut self, cx: &mut Context<'_>) {
        if self.stop.is_some() {
            return;
        }
        if self.shutdown.as_mut().poll(cx).is_ready() {
            return self.begin_stop(None);
        }
        if let Poll::Ready(why) = self.run.poll_refused(cx) {
            return self.begin_stop(Some(SourceError::new(why)));
        }
        if self.connected && self.idle.poll(cx).is_ready() {
            if self.held == 0 && !self.paused {
                return self.begin_stop(None);
            }
            self.idle.reset();
            cx.waker().wake_by_ref();
        }
    }

    /// Acts on what is due. Ready if something was; else the timer is set for what comes next.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut drop_some = self.scopes.end_due(now);
        let mut next = (now + TICK).min(self.scopes.next_drop().unwrap_or(now + TICK));
        if let Some(stop) = &mut self.stop {
            if !stop.dropped && stop.drop_at <= now {
                stop.dropped = true;
                self.scopes.end_all();
                drop_some = true;
            }
            next = next.min(if stop.dropped { stop.drop_at + DROP_GRACE } else { stop.drop_at });
        }
        if drop_some {
            self.executor.sweep();
            return Poll::Ready(());
        }
        if next < self.timer.deadline() || self.timer.deadline() <= now {
            self.timer.as_mut().reset(next);
        }
        self.timer.as_mut().poll(cx)
    }

    fn observe(&mut self) {
        let idle = self.queues.len() + self.run.waiting();
        let executing = self.held.saturating_sub(idle);
        let settled = std::mem::replace(&mut self.settled, false);
        let since = self.health.observe(self.held, executing, self.paused, settled);
        self.meter.observe(self.held, executing, self.source.lag(), since);
    }
}
