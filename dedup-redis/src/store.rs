//! The handle.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution,
    Resolved, StoreError,
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    RedisStoreBuilder, Stats,
    driver::Shared,
    error::ConnectError,
    operation::{Answer, Operation, Work},
};

/// A deadline that is never reached, for lifetimes beyond what the clock can hold.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

/// The dedup store on Redis. Clones share the connections; cloning costs a reference count.
///
/// Operations are enqueued by the call and carried out by tasks of the runtime it was connected on. When the last clone
/// is dropped, they finish what is enqueued and end.
#[derive(Clone)]
pub struct RedisStore {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl RedisStore {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { handle: Arc::new(Handle { shared }) }
    }

    /// Connects with the default options: see [`builder`](Self::builder).
    ///
    /// # Errors
    /// As [`RedisStoreBuilder::connect`].
    ///
    /// # Cancel safety
    /// As [`RedisStoreBuilder::connect`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }

    /// Options first, then [`connect`](RedisStoreBuilder::connect). User and password in a URL may be percent-encoded.
    ///
    /// | where | URL |
    /// |---|---|
    /// | a single node | `redis://[user:password@]host[:6379][/database]` |
    /// | behind Sentinels | `redis+sentinel://[user:password@]host[:26379][,host…]/primary-name[/database]` |
    /// | a Cluster | `redis+cluster://[user:password@]host[:6379][,host…]` |
    ///
    /// With TLS each of them begins with `rediss` instead of `redis`, and may name files in PEM, which are read once:
    /// `?cacertfile=/path/ca.pem`, and `certfile=…&keyfile=…` for a client certificate. What is set by
    /// [`authority`](RedisStoreBuilder::authority) or [`client_certificate`](RedisStoreBuilder::client_certificate) goes
    /// before them.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
    }

    /// Commands, round trips, retries and reconnects so far.
    pub fn stats(&self) -> Stats {
        self.handle.shared.counters.read()
    }

    fn enqueue<T>(&self, until: Instant, work: impl FnOnce(Option<Answer<T>>) -> Work) -> Waiting<T> {
        let (answer, waiting) = oneshot::channel();
        self.handle.shared.queue.push(Operation::new(work(Some(answer)), until));
        waiting
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.handle.shared.settings.response_timeout
    }
}

type Waiting<T> = oneshot::Receiver<Result<T, StoreError>>;

async fn answer<T>(waiting: Waiting<T>) -> Result<T, StoreError> {
    waiting.await.unwrap_or_else(|_| Err(ended()))
}

fn ended() -> StoreError {
    StoreError::new("the runtime of the redis store has ended")
}

impl DedupStore for RedisStore {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        answer(self.enqueue(self.deadline(), |answer| Work::Claim {
            request,
            contested: false,
            epoch: 0,
            answer,
        }))
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        // A completion is worth recording as long as anybody would look at it; a release only as long as the record of
        // the claim lives.
        let meaning = match resolution {
            Resolution::Completed => lifetime,
            _ => claim.lease.saturating_add(claim.grace),
        };
        let until = Instant::now() + meaning.min(FAR);
        answer(self.enqueue(until, |answer| Work::Resolve { claim, resolution, lifetime, answer }))
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        let replies = vec![None; requests.len()];
        answer(self.enqueue(self.deadline(), |answer| Work::Renew { requests, replies, answer }))
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        answer(self.enqueue(self.deadline(), |answer| Work::Park { request, contested: false, answer }))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let flushed = self.handle.shared.queue.flush();
        async move { flushed.await.map_err(|_| ended()) }
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.handle.shared.availability.poll(cx)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("target", &self.handle.shared.settings.target)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
