//! The consumer that everybody writes first. **A counter-example: do not copy it.**
//!
//! It stands where the framework's stack stands: a service over a handler, driven by the same runtime from the same
//! sources. So a test can run one scenario with both, and show that this one loses or doubles where the other one does
//! not. A scenario that nothing fails shows nothing.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), consumer_core::Failure> {
//! use consumer_core::{Message, Outcome};
//! use consumer_testing::{handlers::TestHandler, naive::{Naive, Order, Seen}};
//! use tower::ServiceExt;
//!
//! let handler = TestHandler::new().fail_first(1);
//! let naive = Naive::new(Order::MarkOnly, Seen::new(), handler.clone());
//! let message = Message::builder().id("a").build();
//! assert!(naive.clone().oneshot(message.clone()).await.is_err());
//! assert_eq!(naive.oneshot(message).await?, Outcome::Duplicate);
//! assert!(handler.effects().is_empty(), "acked, and lost");
//! # Ok(())
//! # }
//! ```

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use consumer_core::{DynPublisher, Failure, Message, Outcome, Outgoing, Publisher, Settlement, Source, Tag};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tower::{Service, ServiceExt};

/// How long the mark of [`Order::MarkThenHandle`] holds: as long as a lease does by default.
const MARK: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(86_400);
/// How long a command waits for a store that is away.
const TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_secs(1);

/// In which order it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `EXISTS` → handler → `SETEX`. When `EXISTS` fails, the handler runs: a cache must not stop the business.
    CheckThenMark,
    /// `SET NX EX` → handler → `SETEX`, and `DEL` when the handler has failed. The first mark holds 30 s.
    MarkThenHandle,
    /// `SET NX EX` → handler. The mark holds a day, whatever becomes of the handler.
    MarkOnly,
}

/// What was seen, and until when that is remembered. Clones share it.
///
/// It looks like Redis: each command is a round trip, in which others get their turn.
#[derive(Clone, Default)]
pub struct Seen {
    keys: Arc<Mutex<Keys>>,
    down: watch::Sender<bool>,
}

#[derive(Default)]
struct Keys {
    until: HashMap<Bytes, Instant>,
    lost_replies: usize,
}

impl Seen {
    /// Nothing was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts or ends an outage: a command waits for its end for 5 s, and then fails.
    pub fn set_down(&self, down: bool) {
        self.down.send_replace(down);
    }

    /// The next `n` commands are carried out and answered with an error, as when the reply is lost on its way.
    pub fn lose_replies(&self, n: usize) {
        self.keys().lost_replies = n;
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn command<T>(&self, run: impl FnOnce(&mut HashMap<Bytes, Instant>) -> T) -> Result<T, Failure> {
        let mut down = self.down.subscribe();
        if timeout(TIMEOUT, down.wait_for(|down| !down)).await.is_err() {
            return Err(Failure::transient("the store does not answer"));
        }
        let (answer, lost) = {
            let mut keys = self.keys();
            let lost = keys.lost_replies > 0;
            keys.lost_replies -= usize::from(lost);
            (run(&mut keys.until), lost)
        };
        yield_now().await;
        if lost { Err(Failure::transient("the reply is lost")) } else { Ok(answer) }
    }

    async fn exists(&self, id: &Bytes) -> Result<bool, Failure> {
        self.command(|until| until.get(id).is_some_and(|until| *until > Instant::now())).await
    }

    async fn set(&self, id: &Bytes, ttl: Duration) -> Result<(), Failure> {
        self.command(|until| _ = until.insert(id.clone(), Instant::now() + ttl)).await
    }

    /// Whether the key was new.
    async fn set_nx(&self, id: &Bytes, ttl: Duration) -> Result<bool, Failure> {
        self.command(|until| {
            let new = until.get(id).is_none_or(|until| *until <= Instant::now());
            if new {
                until.insert(id.clone(), Instant::now() + ttl);
            }
            new
        })
        .await
    }

    async fn delete(&self, id: &Bytes) -> Result<(), Failure> {
        self.command(|until| _ = until.remove(id)).await
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("keys", &self.keys().until.len()).finish_non_exhaustive()
    }
}

/// The naive consumer around a handler. It deduplicates by message id.
#[derive(Debug, Clone)]
pub struct Naive<S> {
    order: Order,
    seen: Seen,
    handler: S,
    dead_letters: Option<(DynPublisher, Arc<str>)>,
}

impl<S> Naive<S> {
    /// A failure goes back to the broker.
    pub fn new(order: Order, seen: Seen, handler: S) -> Self {
        Self { order, seen, handler, dead_letters: None }
    }

    /// A failure is tried three times in place, then published as a dead letter and acked, whatever the publisher said.
    #[must_use]
    pub fn dead_letters(mut self, publisher: impl Publisher, target: impl Into<Arc<str>>) -> Self {
        self.dead_letters = Some((DynPublisher::new(publisher), target.into()));
        self
    }
}

impl<S> Naive<S>
where
    S: Service<Message, Response = (), Error = Failure> + Clone,
{
    async fn handle(self, message: Message) -> Result<Outcome, Failure> {
        let id = message.id().cloned().unwrap_or_default();
        let new = match self.order {
            Order::CheckThenMark => !self.seen.exists(&id).await.unwrap_or(false),
            Order::MarkThenHandle => self.seen.set_nx(&id, MARK).await?,
            Order::MarkOnly => self.seen.set_nx(&id, RETENTION).await?,
        };
        if !new {
            return Ok(Outcome::Duplicate);
        }
        let Err(failure) = self.tries(&message).await else {
            if self.order != Order::MarkOnly {
                self.seen.set(&id, RETENTION).await?;
            }
            return Ok(Outcome::Processed);
        };
        if self.order == Order::MarkThenHandle {
            self.seen.delete(&id).await?;
        }
        let Some((publisher, target)) = self.dead_letters else { return Err(failure) };
        let _ = publisher.publish(Outgoing::copy(target, message).set("error", failure.chain())).await;
        Ok(Outcome::DeadLettered)
    }

    async fn tries(&self, message: &Message) -> Result<(), Failure> {
        let tries = if self.dead_letters.is_some() { TRIES } else { 1 };
        let mut attempt = 1;
        loop {
            let call = self.handler.clone().oneshot(message.clone().with_attempt(attempt));
            match call.await {
                Err(failure) if attempt < tries => sleep(failure.retry_after().unwrap_or(BACKOFF)).await,
                end => return end,
            }
            attempt += 1;
        }
    }
}

impl<S> Service<Message> for Naive<S>
where
    S: Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + 'static,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        Box::pin(self.clone().handle(message))
    }
}

/// Commits as a loop that remembers the highest offset does: what was delivered before `done` counts as done as well.
pub fn commit_highest<S: Source>(source: &mut S, delivered: &[Tag], done: Tag) {
    for tag in delivered.iter().filter(|tag| tag.scope == done.scope && tag.seq <= done.seq) {
        source.settle(*tag, Settlement::Ack);
    }
}

/// Answers a message whose key another one works on, as a loop that wants it off its hands does: back to the broker,
/// from where it comes at once.
pub fn requeue_busy<S: Source>(source: &mut S, busy: Tag) {
    source.settle(busy, Settlement::Nack);
}
