//! The consumer that everybody writes first. **A counter-example: do not copy it.**
//!
//! It takes the same messages, sources and handlers as the framework, so that a test can show both side by side: this
//! one loses or doubles where the other one does not. Its store looks like Redis: a set of keys, each command one
//! round trip.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use consumer_core::{BoxError, Failure, Message, Outcome, Settlement, Source, Tag};
use tower::{Layer, Service};

/// The keys that were seen. Each command is a round trip: others get their turn before it answers.
#[derive(Debug, Clone, Default)]
pub struct SeenSet {
    keys: Arc<Mutex<HashSet<Bytes>>>,
    failing: Arc<AtomicUsize>,
}

impl SeenSet {
    /// Nothing was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `n` writes fail.
    pub fn fail_writes(&self, n: usize) {
        self.failing.store(n, Ordering::Relaxed);
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<Bytes>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `EXISTS key`
    pub async fn exists(&self, key: &Bytes) -> bool {
        let seen = self.keys().contains(key);
        tokio::task::yield_now().await;
        seen
    }

    /// `SET key`, or with `NX` in mind: tells whether the key was new.
    ///
    /// # Errors
    /// When told to, by [`fail_writes`](Self::fail_writes).
    pub async fn set(&self, key: &Bytes) -> Result<bool, Failure> {
        tokio::task::yield_now().await;
        let failing = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if failing.is_ok() {
            return Err(Failure::transient("the store is away"));
        }
        Ok(self.keys().insert(key.clone()))
    }
}

/// When the key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `EXISTS` → handler → `SET`: two consumers that ask at once both run the handler, and a failed `SET` repeats it.
    After,
    /// `SET NX` → handler: when the process dies or the handler fails, the message is lost.
    Before,
}

/// Deduplication as it is written first.
#[derive(Debug, Clone)]
pub struct NaiveDedupLayer {
    seen: SeenSet,
    mark: Mark,
}

impl NaiveDedupLayer {
    /// Deduplicates by message id.
    pub fn new(seen: SeenSet, mark: Mark) -> Self {
        Self { seen, mark }
    }
}

impl<S> Layer<S> for NaiveDedupLayer {
    type Service = NaiveDedup<S>;

    fn layer(&self, inner: S) -> NaiveDedup<S> {
        NaiveDedup { inner, seen: self.seen.clone(), mark: self.mark }
    }
}

/// The service of [`NaiveDedupLayer`].
#[derive(Debug, Clone)]
pub struct NaiveDedup<S> {
    inner: S,
    seen: SeenSet,
    mark: Mark,
}

impl<S> Service<Message> for NaiveDedup<S>
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + 'static,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx).map_err(Failure::from_error)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let (seen, mark) = (self.seen.clone(), self.mark);
        Box::pin(async move {
            let key = message.id().cloned().unwrap_or_default();
            let new = match mark {
                Mark::After => !seen.exists(&key).await,
                Mark::Before => seen.set(&key).await?,
            };
            if !new {
                return Ok(Outcome::Duplicate);
            }
            let outcome = inner.call(message).await.map_err(Failure::from_error)?.into();
            if mark == Mark::After {
                seen.set(&key).await?;
            }
            Ok(outcome)
        })
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

/// A store whose states are read in one step and written in another.
#[derive(Debug, Clone, Default)]
pub struct TwoStepStore(Arc<Mutex<HashMap<Bytes, Status>>>);

/// What a [`TwoStepStore`] knows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Somebody works on it.
    InProgress,
    /// The effect has happened.
    Completed,
}

impl TwoStepStore {
    /// Reads the state; the claim follows in a step of its own.
    pub async fn get(&self, key: &Bytes) -> Option<Status> {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        tokio::task::yield_now().await;
        status
    }

    /// Writes the state, whatever it is by now.
    pub async fn put(&self, key: &Bytes, status: Status) {
        tokio::task::yield_now().await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), status);
    }
}
