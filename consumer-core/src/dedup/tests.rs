//! The dedup layer on the paused clock, with a store that can be made slow.
//!
//! Another process is played by a layer with another nonce, or by its operations on the store.

mod cancel;
mod claims;
#[cfg(shuttle)]
mod concurrency;
mod gate;
mod outage;
mod spy;
mod travel;
mod unanswered;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

use self::spy::Spy;
use super::{
    gate::{Gate, Pass},
    protocol::State,
    *,
};
use crate::{Failure, FailureKind, Message, Outcome, memory::MemoryStore, sync::sleep};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);

type Handling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;
type Answer = Result<Outcome, Failure>;

/// One process: a dedup layer with a gate of its own around a handler.
#[derive(Clone)]
struct Process<S> {
    dedup: Dedup<S, Spy>,
    gate: Gate,
}

fn process<F>(
    store: &Spy,
    nonce: u128,
    handler: F,
) -> Process<impl Service<Message, Response = (), Error = Failure, Future = Handling> + Clone + Send + 'static>
where
    F: FnMut(Message) -> Handling + Clone + Send + 'static,
{
    around(store, nonce, service_fn(handler))
}

fn around<S>(store: &Spy, nonce: u128, inner: S) -> Process<S> {
    let gate = Gate::new();
    let layer = DedupLayer::new(store.clone(), "c").lease(LEASE).as_process(nonce, gate.clone());
    Process { dedup: layer.layer(inner), gate }
}

impl<S> Process<S>
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<crate::BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    /// Handles a message; what is returned runs only when polled.
    fn call(&self, message: Message) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        self.dedup.clone().call(message)
    }

    fn spawn(&self, message: Message) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(self.call(message))
    }

    /// The keys that this process works on.
    fn entries(&self) -> usize {
        let text = format!("{:?}", self.dedup.shared.registry);
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    /// Nothing is left behind: no entry, no place in the gate.
    fn assert_empty(&self) {
        assert_eq!(self.entries(), 0, "an entry is left behind");
        let alone = self.gate.enter(true).now_or_never().expect("a place in the gate is left behind");
        self.gate.leave(alone);
    }
}

fn message(id: &str) -> Message {
    Message::builder().payload("{}").id(id.to_owned()).build()
}

fn key(id: &str) -> StoreKey {
    StoreKey::new("c".into(), id.to_owned().into())
}

fn request(id: &str, process: u128) -> ClaimRequest {
    ClaimRequest {
        key: key(id),
        owner: Owner { process, seq: u64::MAX },
        fingerprint: Some(fingerprint(b"{}")),
        lease: LEASE,
        grace: LEASE * 100,
        attempt: 1,
        redrive: 0,
    }
}

/// A process that claims the key and dies: beside others, or alone with it.
async fn dies_with(store: &MemoryStore, id: &str, nonce: u128, mode: Mode) {
    let Ok(ClaimReply::Claimed(claim)) = store.claim(request(id, nonce)).await else { panic!("not claimed") };
    let request = RenewRequest { attempts: claim.attempts, claim, mode };
    store.renew(vec![request]).await.unwrap();
    store.expire_claims();
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn add(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    fn get(&self) -> usize {
        self.0.load(SeqCst)
    }
}

fn ok() -> Handling {
    Box::pin(async { Ok(()) })
}

fn slow(seconds: u32) -> Handling {
    Box::pin(async move {
        sleep(seconds * SECOND).await;
        Ok(())
    })
}

fn fails(failure: Failure) -> Handling {
    Box::pin(async { Err(failure) })
}
