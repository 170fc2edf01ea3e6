//! The deduplicators that people write first. They stand where our stack stands, under the same runtime.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_core::{Failure, Message, Outcome, Outgoing, Publisher, memory::MemoryBroker};
use tokio::time::Instant;

use crate::world::Handler;

/// In which order a naive consumer does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `EXISTS` → handler → `SETEX`.
    CheckThenMark,
    /// `SET NX EX` → handler, and `DEL` when it fails.
    MarkThenHandle,
}

/// Which ids were seen, and until when that is remembered.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<HashMap<Vec<u8>, Instant>>>);

impl Seen {
    fn exists(&self, id: &[u8]) -> bool {
        self.0.lock().unwrap().get(id).is_some_and(|until| *until > Instant::now())
    }

    fn set(&self, id: &[u8], ttl: Duration) -> bool {
        let fresh = !self.exists(id);
        self.0.lock().unwrap().insert(id.to_vec(), Instant::now() + ttl);
        fresh
    }

    fn delete(&self, id: &[u8]) {
        self.0.lock().unwrap().remove(id);
    }
}

/// How long a mark made before the handler holds: as long as a lease.
const MARK: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(86_400);

/// Handles one message the naive way. A failure is tried three times in place, then published as a dead letter and
/// acked, whatever the publisher said.
pub(crate) async fn handle(
    order: Order,
    seen: Seen,
    broker: MemoryBroker,
    handler: Handler,
    message: Message,
) -> Result<Outcome, Failure> {
    let id = message.id().map(|id| id.to_vec()).unwrap_or_default();
    let duplicate = match order {
        Order::CheckThenMark => {
            let exists = seen.exists(&id);
            // The round trip in which another consumer asks the same.
            tokio::task::yield_now().await;
            exists
        }
        Order::MarkThenHandle => !seen.set(&id, MARK),
    };
    if duplicate {
        return Ok(Outcome::Duplicate);
    }
    let mut failure = None;
    for attempt in 1..=3 {
        match handler(message.clone().with_attempt(attempt)).await {
            Ok(()) => {
                seen.set(&id, RETENTION);
                return Ok(Outcome::Processed);
            }
            Err(failed) => failure = Some(failed),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if order == Order::MarkThenHandle {
        seen.delete(&id);
    }
    let dead = Outgoing::copy("dead", message).set("error", failure.map(|f| f.chain()).unwrap_or_default());
    let _ = broker.publisher().publish(dead).await;
    Ok(Outcome::DeadLettered)
}
