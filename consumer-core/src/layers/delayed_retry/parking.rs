//! How later messages of a key wait behind the one that waits for its retry.

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    Failure, IdempotencyKey, Message,
    dedup::{DedupStore, DynStore, ParkOperation, ParkReply, ParkRequest, StoreKey},
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
    limit: u32,
    retention: Duration,
}

impl Parking {
    pub(crate) fn new(store: DynStore, consumer: Arc<str>, key: IdempotencyKey, retention: Duration) -> Self {
        Self { store, consumer, key, limit: LIMIT, retention }
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

    /// None for a message without a message key or without an idempotency key.
    pub(super) fn seat(&self, message: &Message, longest_delay: Duration) -> Option<Seat> {
        let key = message.key()?.clone();
        // What is wrong with it the dedup layer says.
        let id = self.key.of(message).ok().flatten()?;
        Some(Seat {
            store: self.store.clone(),
            key: StoreKey::new(self.consumer.clone(), key),
            id: StoreKey::new(self.consumer.clone(), id).hash(),
            lifetime: self.retention.saturating_add(longest_delay),
        })
    }

    /// Whether it is the message's turn. One that has to wait is in the list from now on.
    pub(super) async fn enter(&self, seat: &Seat, message: &Message) -> Result<Entered, Failure> {
        match seat.ask(message, ParkOperation::Enter { limit: self.limit }).await? {
            ParkReply::Free => Ok(Entered::Free),
            ParkReply::First => Ok(Entered::First),
            ParkReply::Behind { remaining } => Ok(Entered::Behind(remaining)),
            ParkReply::Full => {
                let limit = self.limit;
                let why =
                    format!("{limit} messages of this key wait for a delayed retry: no more are parked");
                Err(self.unhandled(message, why))
            }
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
}

/// The place of a message in the list of its key. Dropped, it changes nothing: the message keeps its place until it is
/// said to [`leave`](Self::leave).
#[derive(Clone)]
pub(crate) struct Seat {
    store: DynStore,
    key: StoreKey,
    id: u128,
    lifetime: Duration,
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

    /// Asks until there is an answer.
    async fn ask(&self, message: &Message, operation: ParkOperation) -> Result<ParkReply, Failure> {
        let mut wait = FIRST_WAIT;
        loop {
            let (reply, _) = answered(message.scope(), self.store.park(self.request(operation))).await;
            let error = match reply {
                Ok(reply) => return Ok(reply),
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
