//! The span around the call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use pin_project_lite::pin_project;
use tower::Service;
use tracing::{Level, Span, field::Empty, level_filters::LevelFilter};

use super::layer::Levels;
use crate::{BoxError, Failure, Message, Outcome, layers::outcome_name, message::wire, plain::Plain};

/// The service of [`TraceLayer`](super::TraceLayer). As ready as what is inside it.
#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
    levels: Levels,
}

impl<S> Trace<S> {
    pub(super) fn new(inner: S, levels: Levels) -> Self {
        Self { inner, levels }
    }
}

impl<S> Service<Message> for Trace<S>
where
    S: Service<Message, Response: Into<Outcome>>,
    S::Error: Into<BoxError>,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let span = span(self.levels.span, &message);
        // The handler may do its work in `call`, so that belongs to the span as well.
        let call = match &span {
            Some(span) => span.in_scope(|| self.inner.call(message)),
            None => self.inner.call(message),
        };
        let started = span.as_ref().map(|_| Instant::now());
        TraceFuture { call, record: Record { span, started, levels: self.levels, open: true } }
    }
}

pin_project! {
    /// The future of [`Trace`].
    ///
    /// # Cancel safety
    /// Dropping it drops the call; the span then ends with the outcome `dropped`.
    #[derive(Debug)]
    pub struct TraceFuture<F> {
        #[pin]
        call: F,
        record: Record,
    }
}

impl<F, T, E> Future for TraceFuture<F>
where
    F: Future<Output = Result<T, E>>,
    T: Into<Outcome>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.record.span.as_ref().map(Span::enter);
        let result = ready!(this.call.poll(cx)).map(Into::into).map_err(Failure::from_error);
        this.record.levels.event(&result, this.record.started);
        drop(entered);
        this.record.close(outcome_name(&result));
        Poll::Ready(result)
    }
}

/// What is open until the outcome is known.
#[derive(Debug)]
struct Record {
    // None where the subscriber does not want it.
    span: Option<Span>,
    started: Option<Instant>,
    levels: Levels,
    open: bool,
}

impl Record {
    fn close(&mut self, outcome: &'static str) {
        self.open = false;
        if let Some(span) = &self.span {
            span.record("outcome", outcome);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.open {
            self.close("dropped");
        }
    }
}

/// The macros want their level as a constant.
macro_rules! at_level {
    ($level:expr, $macro:ident, $($arguments:tt)*) => {
        match $level {
            Level::ERROR => tracing::$macro!(target: "consumer", Level::ERROR, $($arguments)*),
            Level::WARN => tracing::$macro!(target: "consumer", Level::WARN, $($arguments)*),
            Level::INFO => tracing::$macro!(target: "consumer", Level::INFO, $($arguments)*),
            Level::DEBUG => tracing::$macro!(target: "consumer", Level::DEBUG, $($arguments)*),
            Level::TRACE => tracing::$macro!(target: "consumer", Level::TRACE, $($arguments)*),
        }
    };
}

/// One load, for the many deliveries whose subscriber wants nothing of this.
fn wanted(level: Level) -> bool {
    level <= LevelFilter::current()
}

fn span(level: Level, message: &Message) -> Option<Span> {
    if !wanted(level) {
        return None;
    }
    let span = at_level!(
        level,
        span,
        "message",
        message_id = message.id().map(|id| tracing::field::display(Text(id))),
        key = message.key().map(|key| tracing::field::display(Text(key))),
        origin = %message.origin(),
        attempt = message.attempt(),
        epoch = Empty,
        traceparent = message.headers().get_str(wire::TRACEPARENT),
        outcome = Empty
    );
    if span.is_disabled() {
        return None;
    }
    if message.epoch() > 0 {
        span.record("epoch", message.epoch());
    }
    Some(span)
}

impl Levels {
    fn event(self, result: &Result<Outcome, Failure>, started: Option<Instant>) {
        let failed = result.as_ref().is_err_and(|failure| !failure.is_cancelled());
        if !wanted(if failed { self.failure } else { self.success }) {
            return;
        }
        let outcome = outcome_name(result);
        let elapsed_ms = started.map(|at| at.elapsed().as_secs_f64() * 1e3);
        match result {
            Err(failure) if !failure.is_cancelled() => at_level!(
                self.failure,
                event,
                outcome,
                elapsed_ms,
                attempts = failure.attempts(),
                error = %failure.chain(),
                "message failed"
            ),
            Err(failure) => {
                at_level!(self.success, event, outcome, elapsed_ms, reason = %failure.chain(), "message handed back");
            }
            Ok(_) => at_level!(self.success, event, outcome, elapsed_ms, "message done"),
        }
    }
}

/// Bytes as text, whatever they are; cut where an id would fill a log line.
struct Text<'a>(&'a [u8]);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const LONGEST: usize = 256;
        let shown = &self.0[..self.0.len().min(LONGEST)];
        for chunk in shown.utf8_chunks() {
            Plain(chunk.valid()).fmt(f)?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        if shown.len() < self.0.len() { f.write_str("…") } else { Ok(()) }
    }
}
