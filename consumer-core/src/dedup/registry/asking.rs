//! Claims that are asked for, and go back while nobody knows whether they were granted.

use std::sync::Arc;

use tokio::time::Instant;

use super::{HeldClaim, Registry, Ticket};
use crate::{
    dedup::{Claim, ClaimRequest, DedupStore, Resolution, gate::Pass},
    sync::{self, atomic::Ordering},
};

/// A claim that is being asked for. Dropped while the answer is unknown, it hands back what may have been granted.
pub(in crate::dedup) struct Asking {
    ticket: Option<Ticket>,
    unknown: bool,
}

impl Asking {
    /// The store is asked at once: until it answers, what it does is unknown.
    pub(in crate::dedup) fn new(ticket: Ticket) -> Self {
        Self { ticket: Some(ticket), unknown: true }
    }

    /// What to ask once more; from here on the answer is unknown.
    pub(in crate::dedup) fn again(&mut self) -> Option<ClaimRequest> {
        self.unknown = true;
        self.ticket.as_ref()?.with(|entry| entry.request.clone())
    }

    /// The store has granted what was asked at `sent`. With `enter`, a place in the gate beside others is taken as
    /// well, if nobody has to be waited for; then the answer is true.
    pub(in crate::dedup) fn granted(mut self, claim: Claim, sent: Instant, enter: bool) -> (HeldClaim, bool) {
        let ticket = self.ticket.take();
        let mut pass = Pass::Outside;
        if let Some(ticket) = &ticket {
            if enter {
                pass = ticket.registry.gate.try_enter().unwrap_or(Pass::Outside);
            }
            ticket.grant(&claim, sent, pass);
        }
        (HeldClaim::new(claim, ticket, sent), pass != Pass::Outside)
    }

    /// Somebody else has it; this one asks again.
    pub(in crate::dedup) fn denied(&mut self) {
        self.unknown = false;
    }

    /// Nothing is left to ask.
    pub(in crate::dedup) fn answered(mut self) {
        self.unknown = false;
    }

    /// Goes on without a claim: the key is free for others in this process at once, whatever the store does.
    pub(in crate::dedup) fn give_up(mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let request = ticket.with(|entry| entry.request.clone());
        let registry = ticket.registry.clone();
        drop(ticket);
        if let Some(request) = request {
            hand_back(registry, request, None);
        }
    }
}

/// Hands back what may have been granted. The entry, if there still is one, stays until that is done.
fn hand_back(registry: Arc<Registry>, request: ClaimRequest, ticket: Option<Ticket>) {
    registry.handing_back.fetch_add(1, Ordering::AcqRel);
    let counted = HandingBack(registry);
    sync::spawn(async move {
        let registry = &counted.0;
        // Behind the claim, which may still be on its way: a store keeps no order between what is not answered. Without
        // an answer the claim ends with its lease.
        let _ = registry.store.flush().await;
        let claim = Claim {
            key: request.key,
            owner: request.owner,
            epoch: 0,
            attempts: 0,
            crashes: 0,
            suspect: false,
            fingerprint: request.fingerprint,
            redrive: request.redrive,
            lease: request.lease,
            grace: request.grace,
        };
        let back = Resolution::Returned { attempts: 0 };
        let _ = registry.store.resolve(claim, back, registry.retention).await;
        drop(ticket);
    });
}

/// Counts until dropped.
struct HandingBack(Arc<Registry>);

impl Drop for HandingBack {
    fn drop(&mut self) {
        self.0.handing_back.fetch_sub(1, Ordering::AcqRel);
        self.0.handed_back.notify_waiters();
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take().filter(|_| self.unknown) else { return };
        let Some(request) = ticket.with(|entry| entry.request.clone()) else { return };
        hand_back(ticket.registry.clone(), request, Some(ticket));
    }
}
