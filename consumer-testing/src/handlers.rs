//! A handler for tests: it records, and fails or panics as told.

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
use consumer_core::{Failure, Message};
use tower::Service;

/// Records what it is called with. Clones share the record.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use consumer_core::Message;
/// use consumer_testing::handlers::TestHandler;
/// use tower::ServiceExt;
///
/// let handler = TestHandler::new().fail_first(1);
/// let message = Message::builder().id("a").build();
/// assert!(handler.clone().oneshot(message.clone()).await.is_err());
/// assert!(handler.clone().oneshot(message).await.is_ok());
/// assert_eq!((handler.calls().len(), handler.effects().len()), (2, 1));
/// # }
/// ```
#[derive(Clone, Default)]
pub struct TestHandler {
    record: Arc<Mutex<Record>>,
    fail_first: u32,
    panic_first: u32,
    permanent: bool,
    takes: Duration,
}

#[derive(Default)]
struct Record {
    calls: Vec<Message>,
    effects: Vec<Message>,
    by_id: HashMap<Bytes, u32>,
    running: usize,
    most_at_once: usize,
}

impl TestHandler {
    /// A handler that succeeds at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails the first `n` calls of each message id.
    #[must_use]
    pub fn fail_first(mut self, n: u32) -> Self {
        self.fail_first = n;
        self
    }

    /// Panics in the first `n` calls of each message id.
    #[must_use]
    pub fn panic_first(mut self, n: u32) -> Self {
        self.panic_first = n;
        self
    }

    /// Its failures are permanent instead of transient.
    #[must_use]
    pub fn permanently(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// Waits this long, on tokio's clock, before it has its effect.
    #[must_use]
    pub fn takes(mut self, time: Duration) -> Self {
        self.takes = time;
        self
    }

    /// Every call, in the order they started.
    pub fn calls(&self) -> Vec<Message> {
        self.record().calls.clone()
    }

    /// Every call that succeeded, in that order.
    pub fn effects(&self) -> Vec<Message> {
        self.record().effects.clone()
    }

    /// How many calls ran at the same time, at the most.
    pub fn most_at_once(&self) -> usize {
        self.record().most_at_once
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self, message: Message) -> Result<(), Failure> {
        let id = message.id().cloned().unwrap_or_default();
        let nth = {
            let mut record = self.record();
            record.calls.push(message.clone());
            record.running += 1;
            record.most_at_once = record.most_at_once.max(record.running);
            let nth = record.by_id.entry(id).or_default();
            *nth += 1;
            *nth
        };
        let running = Running(self.clone());
        tokio::time::sleep(self.takes).await;
        drop(running);
        assert!(nth > self.panic_first, "told to panic in call {nth}");
        if nth <= self.fail_first {
            let said = format!("told to fail in call {nth}");
            return Err(if self.permanent { Failure::permanent(said) } else { Failure::transient(said) });
        }
        self.record().effects.push(message);
        Ok(())
    }
}

/// A call that is dropped does not run any more either.
struct Running(TestHandler);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.record().running -= 1;
    }
}

impl Service<Message> for TestHandler {
    type Response = ();
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        Box::pin(self.clone().run(message))
    }
}

impl fmt::Debug for TestHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestHandler").field("calls", &self.record().calls.len()).finish_non_exhaustive()
    }
}
