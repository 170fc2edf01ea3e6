//! How later messages of a key wait behind the one that waits for its retry.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::sleep;

use crate::{
    Failure, IdempotencyKey, Message,
    dedup::{DedupStore, DynStore, Fingerprint, ParkOperation, ParkReply, ParkRequest, StoreKey},
    failure::chain,
    message::wire,
    scope::answered,
};

/// How many messages of a key may wait unless it is said otherwise.
const LIMIT: u32 = 1000;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Keeps the order of keys whose message waits for a delayed retry: later messages of such a key are parked.
///
/// Made by [`DedupLayer::parking`](crate::DedupLayer::parking), so that both mean the same messages by the same ids. See
/// [delayed retry](super#parking) for what it does.
#[derive(Clone)]
#[must_use]
pub struct Parking {
    store: DynStore,
    consumer: Arc<str>,
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    limit: u32,
    retention: Duration,
    outage: Outage,
}

impl Parking {
    pub(crate) fn new(store: DynStore, consumer: Arc<str>, key: IdempotencyKey, retention: Duration) -> Self {
        let (fingerprint, outage) = (Fingerprint::payload(), Outage::default());
        Self { store, consumer, key, fingerprint, limit: LIMIT, retention, outage }
    }

    pub(crate) fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// Whether messages are handled while the store is away.
    pub(crate) fn bypass(mut self, bypass: bool) -> Self {
        self.outage.bypass = bypass;
        self
    }

    /// Sets how many messages of a key may wait, the one that has failed included. Default: 1,000; at least 1.
    ///
    /// A message that comes when so many wait fails for good, and goes to the dead letters.
    pub fn limit(mut self, messages: u32) -> Self {
        self.limit = messages.max(1);
        self
    }

    /// Sets for how long a key is kept parked for a message that does not come back though it is due. Default: the
    /// retention of the dedup layer. When it is over, the key is free again: its order is lost, its messages are not.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    pub(super) fn max_parked(&self) -> u32 {
        self.limit
    }

    /// None for a message without a message key or without an idempotency key, and for one that cannot be read: it has no
    /// turn to wait for, and a copy of it would look as if it were whole.
    pub(super) fn seat(&self, message: &Message, longest_delay: Duration) -> Option<Seat> {
        let key = list_key(message)?;
        if message.defect().is_some() {
            return None;
        }
        // What is wrong with these the dedup layer says.
        let id = self.key.of(message).ok().flatten()?;
        let fingerprint = self.fingerprint.of(message).ok().flatten().unwrap_or(0);
        Some(Seat {
            store: self.store.clone(),
            key: StoreKey::new(self.consumer.clone(), key),
            // Another payload under this id is another message: it must not give away the place of this one.
            id: StoreKey::new(self.consumer.clone(), id).hash().wrapping_add(fingerprint.rotate_left(1)),
            lifetime: self.retention.saturating_add(longest_delay),
            outage: self.outage.clone(),
        })
    }

    /// Whether it is the message's turn. One that has to wait is in the list from now on.
    pub(super) async fn enter(&self, seat: &Seat, message: &Message) -> Result<Entered, Failure> {
        let Some(reply) = seat.ask(message, ParkOperation::Enter { limit: self.limit }).await? else {
            return Ok(Entered::Free);
        };
        match reply {
            ParkReply::Free => Ok(Entered::Free),
            ParkReply::First => Ok(Entered::First),
            ParkReply::Behind { remaining } => Ok(Entered::Behind(remaining)),
            ParkReply::Full => Ok(Entered::Full(Unparked { limit: self.limit })),
            other => {
                Err(Failure::cancelled(format!("the store answers {other:?} to the question for a turn")))
            }
        }
    }

    /// The message cannot wait for its turn, and must not be handled out of it.
    pub(super) fn unhandled(&self, message: &Message, why: String) -> Failure {
        let mut failure = Failure::permanent(why);
        failure.set_attempts(message.retry_count(wire::RETRY_ATTEMPT).saturating_sub(1));
        failure.set_consumer(self.consumer.clone());
        failure
    }
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Entered {
    /// Nobody waits.
    Free,
    /// This message is the first of those that wait.
    First,
    /// The first one waits for about this long.
    Behind(Duration),
    /// Too many wait.
    Full(Unparked),
}

/// Marks a message for which there was no place in the list. It is not handled; but the dedup layer sees it, since it may
/// be a duplicate of one that is done with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unparked {
    limit: u32,
}

impl Unparked {
    pub(crate) fn failure(self) -> Failure {
        let limit = self.limit;
        Failure::permanent(format!(
            "{limit} messages of this key wait for a delayed retry: no more are parked"
        ))
    }
}

/// What happens while the store is away: unless it is bypassed, everything waits for it.
#[derive(Clone, Default)]
struct Outage {
    bypass: bool,
    /// Said once for each outage.
    is_told: Arc<AtomicBool>,
}

/// The message key, and the topic or queue that the message came from at first: keys of others are others.
fn list_key(message: &Message) -> Option<Bytes> {
    let key = message.key()?;
    let first = ["topic", "queue"]
        .iter()
        .find_map(|kind| message.retry_header(&format!("{}{kind}", wire::RETRY_PREFIX)));
    let name = first.unwrap_or(message.origin().name());
    Some([name.as_bytes(), b"\0", key].concat().into())
}

/// The place of a message in the list of its key. Dropped, it changes nothing: the message keeps its place until it is
/// said to [`leave`](Self::leave).
#[derive(Clone)]
pub(crate) struct Seat {
    store: DynStore,
    key: StoreKey,
    id: u128,
    lifetime: Duration,
    outage: Outage,
}

impl Seat {
    fn request(&self, operation: ParkOperation) -> ParkRequest {
        ParkRequest { key: self.key.clone(), id: self.id, operation, lifetime: self.lifetime }
    }

    /// The message waits for its retry: from now on nothing passes it.
    pub(super) async fn defer(&self, message: &Message, wait: Duration) -> Result<(), Failure> {
        self.ask(message, ParkOperation::Defer { wait }).await.map(drop)
    }

    /// The message is done with, as the store and the broker know.
    ///
    /// # Errors
    /// When the message is handed back meanwhile. It must come again, or the key stays parked.
    pub(crate) async fn leave(&self, message: &Message) -> Result<(), Failure> {
        self.ask(message, ParkOperation::Leave).await.map(drop)
    }

    /// As [`leave`](Self::leave), for a message that will not come again whatever the store answers.
    pub(crate) fn leave_unheard(&self) {
        drop(self.store.park(self.request(ParkOperation::Leave)));
    }

    /// Asks until there is an answer; none while the store is away and the policy says to go on without it.
    async fn ask(&self, message: &Message, operation: ParkOperation) -> Result<Option<ParkReply>, Failure> {
        let mut wait = FIRST_WAIT;
        loop {
            if self.outage.bypass && self.is_away() {
                self.tell_bypassed();
                return Ok(None);
            }
            let (reply, _) = answered(message.scope(), self.store.park(self.request(operation))).await;
            let error = match reply {
                Ok(reply) => {
                    self.outage.is_told.store(false, Relaxed);
                    return Ok(Some(reply));
                }
                Err(_) if self.outage.bypass => {
                    self.tell_bypassed();
                    return Ok(None);
                }
                Err(error) => error,
            };
            tracing::warn!(error = %chain(&error), "dedup store gave no answer about a parked key: waiting for it");
            let again = async {
                poll_fn(|cx| self.store.poll_available(cx)).await;
                sleep(wait).await;
            };
            message
                .wait_or_cancelled(again)
                .await
                .ok_or_else(|| Failure::cancelled("handed back while the store was asked about its key"))?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn is_away(&self) -> bool {
        self.store.poll_available(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn tell_bypassed(&self) {
        if !self.outage.is_told.swap(true, Relaxed) {
            tracing::error!(
                "dedup store is away: the order of keys that wait for a delayed retry is not kept"
            );
        }
    }
}

impl fmt::Debug for Parking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parking")
            .field("consumer", &self.consumer)
            .field("key", &self.key)
            .field("limit", &self.limit)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("key", &self.key).finish_non_exhaustive()
    }
}
