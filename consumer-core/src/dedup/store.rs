//! What the dedup layer asks of a store.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::parking::{ParkReply, ParkRequest};
use crate::BoxError;

/// An idempotency key within the scope of one logical consumer, with the hash that compact stores keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreKey {
    scope: Arc<str>,
    key: Bytes,
    hash: u128,
}

impl StoreKey {
    /// The key `key` of the consumer `scope`.
    pub fn new(scope: Arc<str>, key: Bytes) -> Self {
        Self { hash: hash(&scope, &key), scope, key }
    }

    /// The logical consumer.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The idempotency key.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// XXH3-128 over the length of the scope (64 bits, little endian), the scope and the key. Part of the stored format.
    pub fn hash(&self) -> u128 {
        self.hash
    }
}

/// Below this, all of it is put together on the stack: the state of the streaming hasher is larger than any usual key.
const SHORT: usize = 192;

fn hash(scope: &str, key: &[u8]) -> u128 {
    let scope_len = (scope.len() as u64).to_le_bytes();
    let parts = [&scope_len[..], scope.as_bytes(), key];
    let mut buffer = [0; SHORT];
    let mut end = 0;
    if parts.iter().map(|part| part.len()).sum::<usize>() <= SHORT {
        for part in parts {
            buffer[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        return xxh3_128(&buffer[..end]);
    }
    let mut hasher = Xxh3::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest128()
}

/// The fingerprint of a payload: XXH3-128. Part of the stored format.
pub fn fingerprint(payload: &[u8]) -> u128 {
    xxh3_128(payload)
}

/// Who holds a claim: a process, and one claim within it. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Owner {
    /// Random for each process.
    pub process: u128,
    /// Counts the claims of the process.
    pub seq: u64,
}

/// Asks for a key.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The key.
    pub key: StoreKey,
    /// The nonce by which a claim whose reply was lost recognises itself.
    pub owner: Owner,
    /// The fingerprint of the payload; `None` compares as equal to all.
    pub fingerprint: Option<u128>,
    /// How long the claim holds unless it is renewed.
    pub lease: Duration,
    /// How long the record of an expired claim is kept, so that its take-over is seen.
    pub grace: Duration,
    /// The attempt the message asks for: 1, or what a delayed copy carries.
    pub attempt: u32,
    /// How often the message was redriven.
    pub redrive: u32,
}

/// A key that was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key.
    pub key: StoreKey,
    /// The nonce of the claim.
    pub owner: Owner,
    /// The fencing token: grows with every claim of the key.
    pub epoch: u64,
    /// Failed calls before this claim, over all processes.
    pub attempts: u32,
    /// How often a process died while it ran this message alone.
    pub crashes: u32,
    /// Whether the last owner died with the claim: the message has to run alone.
    pub suspect: bool,
    /// The fingerprint it was claimed with.
    pub fingerprint: Option<u128>,
    /// How often the message was redriven.
    pub redrive: u32,
    /// The lease it was claimed with; renewals ask for the same.
    pub lease: Duration,
    /// The grace it was claimed with.
    pub grace: Duration,
}

/// What a store answers to a [`ClaimRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimReply {
    /// The key is yours until the lease ends.
    Claimed(Claim),
    /// The effect has happened.
    Completed,
    /// Another owner holds the key for about this long.
    Busy {
        /// What is left of the lease.
        remaining: Duration,
    },
    /// The key stands for another payload.
    Conflict,
    /// A delayed copy with a later attempt exists.
    Superseded,
    /// The message is dead-lettered and this is no redrive of it.
    DeadLettered,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// The handler succeeded. Recorded whoever holds the claim now.
    Completed,
    /// Shutdown or rebalance: the call that was cut off counts nothing.
    Returned {
        /// Failed calls so far, over all processes.
        attempts: u32,
    },
    /// The last call failed.
    Failed {
        /// Failed calls so far, over all processes.
        attempts: u32,
    },
    /// A dead letter is confirmed.
    DeadLettered,
    /// A delayed copy is confirmed.
    Deferred {
        /// The attempt that the copy asks for.
        attempt: u32,
    },
}

/// What a store did with a [`Resolution`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// It is recorded.
    Applied,
    /// It is recorded, and another owner had taken the key meanwhile: both ran.
    Overlapped,
    /// The key was completed already: by another owner, unless this one has completed it before. A store that repeats an
    /// operation on its own account, for a reply that was lost, answers what the first try would have been answered.
    AlreadyCompleted,
    /// The claim was not this owner's any more: nothing changed.
    NotOwner,
}

/// How a claim runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Beside others.
    Normal,
    /// To be run alone, but not yet alone: dying now proves nothing.
    Suspect,
    /// Alone in its process: dying now counts as a crash.
    Alone,
}

/// Asks to prolong a claim and reports on it.
#[derive(Debug, Clone)]
pub struct RenewRequest {
    /// The claim.
    pub claim: Claim,
    /// Failed calls so far, over all processes.
    pub attempts: u32,
    /// How it runs now.
    pub mode: Mode,
}

/// What a store answers to a [`RenewRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The claim holds for another lease.
    Held,
    /// Another owner has it, or it was released or forgotten.
    Lost,
    /// The key is completed.
    Completed,
    /// No answer for this one, while there was one for others: as an error would be, it is not lost by that.
    Unanswered,
}

/// Keeps the state of idempotency keys. The transitions are those of [`protocol`](super::protocol).
///
/// **Every operation is enqueued by the call, not by the first poll of its future.** Dropping the future loses the
/// answer, never the operation: the store finishes it by itself, retrying over reconnects. The conformance suite in
/// `consumer-testing` drops each future unpolled and expects the operation to have happened.
pub trait DedupStore: Clone + Send + Sync + 'static {
    /// Claims a key.
    ///
    /// # Errors
    /// When the store gave no answer within its deadline. The claim may have been made all the same; asking again
    /// with the same owner finds it.
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<Self>;

    /// Records what became of a claim, and keeps that record for `lifetime`.
    ///
    /// The future waits until it is recorded, over outages.
    ///
    /// # Errors
    /// When the store has given up for good, which is logged; the claim then ends with its lease.
    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<Self>;

    /// Prolongs claims; answers in their order.
    ///
    /// # Errors
    /// When the store gave no answer within its deadline. That does not mean that the claims are lost.
    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<Self>;

    /// Asks who waits of a message key, or changes that. The transitions are those of [`parking`](super::parking).
    ///
    /// # Errors
    /// When the store gave no answer within its deadline. It may have been done all the same; asking again is safe.
    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<Self>;

    /// Ready when everything enqueued before has been answered.
    ///
    /// # Errors
    /// When that cannot be reached. The caller bounds the wait.
    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<Self>;

    /// Whether it still knows its keys after this process was started anew. Only for telling users.
    fn survives_restart(&self) -> bool {
        true
    }

    /// Pending, with the waker kept, while the store is known to be down.
    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Ready(())
    }
}

/// A store that did not do what it was asked.
pub struct StoreError {
    message: String,
    source: Option<BoxError>,
}

impl StoreError {
    /// An error in words, without secrets: which store, what was asked.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError").field("message", &self.message).field("source", &self.source).finish()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

trait ErasedStore: Send + Sync {
    fn claim(&self, request: ClaimRequest) -> Answer<ClaimReply>;
    fn resolve(&self, claim: Claim, resolution: Resolution, lifetime: Duration) -> Answer<Resolved>;
    fn renew(&self, requests: Vec<RenewRequest>) -> Answer<Vec<Renewal>>;
    fn park(&self, request: ParkRequest) -> Answer<ParkReply>;
    fn flush(&self) -> Answer<()>;
    fn survives_restart(&self) -> bool;
    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()>;
}

impl<S: DedupStore> ErasedStore for S {
    fn claim(&self, request: ClaimRequest) -> Answer<ClaimReply> {
        Box::pin(DedupStore::claim(self, request))
    }

    fn resolve(&self, claim: Claim, resolution: Resolution, lifetime: Duration) -> Answer<Resolved> {
        Box::pin(DedupStore::resolve(self, claim, resolution, lifetime))
    }

    fn renew(&self, requests: Vec<RenewRequest>) -> Answer<Vec<Renewal>> {
        Box::pin(DedupStore::renew(self, requests))
    }

    fn park(&self, request: ParkRequest) -> Answer<ParkReply> {
        Box::pin(DedupStore::park(self, request))
    }

    fn flush(&self) -> Answer<()> {
        Box::pin(DedupStore::flush(self))
    }

    fn survives_restart(&self) -> bool {
        DedupStore::survives_restart(self)
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        DedupStore::poll_available(self, cx)
    }
}

/// A store of any kind, for choosing one at run time (by URL). One allocation more for each operation.
#[derive(Clone)]
pub struct DynStore(Arc<dyn ErasedStore>);

impl DynStore {
    /// Erases the type of `store`.
    pub fn new(store: impl DedupStore) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for DynStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynStore")
    }
}

impl DedupStore for DynStore {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.0.claim(request)
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        self.0.resolve(claim, resolution, lifetime)
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.0.renew(requests)
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        self.0.park(request)
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.0.flush()
    }

    fn survives_restart(&self) -> bool {
        self.0.survives_restart()
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_available(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reaches_no_key_of_another_scope() {
        let hash = |scope: &str, key: &[u8]| StoreKey::new(scope.into(), Bytes::copy_from_slice(key)).hash();
        let length = |scope: &str| (scope.len() as u64).to_le_bytes();
        for (scope, id, foreign_scope, foreign_id) in [
            ("a", &b"bc"[..], "ab", &b"c"[..]),
            ("mails", &b":invoices:7"[..], "mails:invoices", &b":7"[..]),
            ("mails", &b"}{invoices}7"[..], "mails}{invoices", &b"}7"[..]),
            ("mails", &b"\0invoices\x007"[..], "invoices", &b"7"[..]),
            ("mails", &b""[..], "mail", &b"s"[..]),
            ("", &[&length("invoices")[..], b"invoices7"].concat()[..], "invoices", &b"7"[..]),
        ] {
            assert_ne!(hash(scope, id), hash(foreign_scope, foreign_id), "{scope} {id:?}");
        }
        // Above and below the bound of the buffer.
        for long in [SHORT - 13, SHORT - 12, 1 << 20] {
            assert_ne!(hash("mails", &vec![b's'; long]), hash("mailss", &vec![b's'; long - 1]));
        }
    }
}
