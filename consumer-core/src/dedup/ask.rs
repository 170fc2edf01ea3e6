//! What a message does whose claim was not granted at once: it waits for another one of its key, for the end of a lease,
//! or for the store.

use std::{future::poll_fn, time::Duration};

use tokio::time::Instant;

use super::{
    Claim, ClaimReply, ClaimRequest, DedupStore, OnOutage, StoreError,
    registry::Asking,
    service::{Shared, handed_back},
};
use crate::{
    Failure, FailureKind, Message, Outcome,
    failure::chain,
    scope::answered,
    sync::{self, sleep},
};

/// What the store had to say in the end to one that waited or asked more than once.
#[expect(clippy::large_enum_variant, reason = "one value in a future that is boxed as a whole")]
pub(super) enum Asked {
    /// Granted, as asked for at the instant.
    Granted(Asking, Claim, Instant),
    /// Nothing is to be done.
    Known(Outcome),
    /// The store is away and the policy says to go on without it.
    Unprotected,
}

impl<D: DedupStore> Shared<D> {
    /// Too much of the lease is gone for the renewal task to find it in time.
    pub(super) fn is_too_slow(&self, took: Duration) -> bool {
        took > self.config.lease * 2 / 5
    }

    /// Another message of this key is under way in this process: asks when that is done.
    pub(super) async fn join(&self, mut request: ClaimRequest, message: &Message) -> Result<Asked, Failure> {
        let first = self.registry.enter(&mut request);
        let ticket = message.wait_or_cancelled(first).await.ok_or_else(handed_back)?;
        let asking = Asking::new(ticket);
        let sent = sync::now();
        let (reply, took) = answered(message.scope(), self.store.claim(request)).await;
        self.meter.claim_answered(took);
        self.ask_again(asking, reply, sent, took, message).await
    }

    /// Goes on from the reply to what was asked at `sent`, and asks until there is an answer.
    pub(super) async fn ask_again(
        &self,
        mut asking: Asking,
        mut reply: Result<ClaimReply, StoreError>,
        mut sent: Instant,
        mut took: Duration,
        message: &Message,
    ) -> Result<Asked, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let wait = match reply {
                Ok(ClaimReply::Claimed(_)) if self.is_too_slow(took) => {
                    tracing::warn!(?took, "dedup store is too slow for this lease: asking again");
                    Duration::from_millis(1)
                }
                Ok(ClaimReply::Claimed(claim)) => return Ok(Asked::Granted(asking, claim, sent)),
                Ok(ClaimReply::Completed | ClaimReply::DeadLettered) => {
                    asking.answered();
                    return Ok(Asked::Known(Outcome::Duplicate));
                }
                Ok(ClaimReply::Superseded) => {
                    asking.answered();
                    return Ok(Asked::Known(Outcome::Superseded));
                }
                Ok(ClaimReply::Conflict) => {
                    asking.answered();
                    let failure = Failure::of_kind(
                        FailureKind::Conflict,
                        "this idempotency key was used for another payload",
                    );
                    return Err(self.unclaimed(failure));
                }
                Ok(ClaimReply::Busy { remaining }) => {
                    self.meter.busy();
                    asking.denied();
                    busy_wait(remaining, tries)
                }
                Err(error) if self.config.on_outage == OnOutage::Bypass => {
                    self.meter.bypassed();
                    tracing::error!(error = %chain(&error), "dedup store is away: handling without protection");
                    // What is known to be away is not asked to take anything back: it would keep that for each message.
                    if self.is_bypassed() {
                        asking.answered()
                    } else {
                        asking.give_up()
                    }
                    return Ok(Asked::Unprotected);
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "dedup store gave no answer: waiting for it");
                    busy_wait(Duration::from_secs(1), tries)
                }
            };
            let again = async {
                poll_fn(|cx| self.store.poll_available(cx)).await;
                sleep(wait).await;
            };
            message.wait_or_cancelled(again).await.ok_or_else(handed_back)?;
            let Some(request) = asking.again() else { return Err(handed_back()) };
            sent = sync::now();
            (reply, took) = answered(message.scope(), self.store.claim(request)).await;
            self.meter.claim_answered(took);
        }
    }
}

/// Asks again soon at first, then at growing intervals, and shortly after the lease has ended at the latest. The
/// spread keeps competing processes apart.
fn busy_wait(remaining: Duration, tries: u32) -> Duration {
    let soon = Duration::from_millis(50).saturating_mul(1 << tries.min(10));
    let spread = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    let wait = soon.min(remaining + Duration::from_millis(1));
    wait + wait / 4 * spread / 255
}
