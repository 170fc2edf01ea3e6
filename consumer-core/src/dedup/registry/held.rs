//! A granted claim, until what became of it is recorded.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{ClaimHandle, LostClaim, Ticket, deadline};
use crate::{
    dedup::{Claim, DedupStore, Resolution, Resolved, StoreError, StoreKey},
    failure::chain,
    sync::{self, Mutex},
};

/// A claim that this process holds and renews until what became of it is recorded.
///
/// Dropped unresolved it records [`Resolution::Returned`], or [`Resolution::Failed`] once it travels in a failure.
pub(crate) struct HeldClaim {
    claim: Claim,
    hold: Hold,
    /// The deadline as it was granted; renewals put off the one in the registry.
    granted_until: Instant,
}

/// Answers for the claim until it is resolved. Apart from it, so that the claim can be moved out.
struct Hold {
    ticket: Option<Ticket>,
    failed: Option<u32>,
}

/// What the store did with a claim; the key only where that is worth a word in the log.
pub(in crate::dedup) type Settled = (Result<Resolved, StoreError>, Option<StoreKey>);

impl HeldClaim {
    /// `sent` is when the claim was asked for.
    pub(super) fn new(claim: Claim, ticket: Option<Ticket>, sent: Instant) -> Self {
        let granted_until = deadline(sent, claim.lease);
        Self { claim, hold: Hold { ticket, failed: None }, granted_until }
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(in crate::dedup) fn handle(&self) -> Option<ClaimHandle> {
        self.hold.ticket.as_ref().map(Ticket::handle)
    }

    /// Failed calls so far, over all processes.
    pub(in crate::dedup) fn attempts(&self) -> u32 {
        self.hold.ticket.as_ref().and_then(|t| t.with(|entry| entry.attempts)).unwrap_or(self.claim.attempts)
    }

    /// Takes a place in the gate, as [`ClaimHandle::take_place`].
    pub(in crate::dedup) async fn enter_gate(&self) -> Result<(), LostClaim> {
        match self.handle() {
            Some(handle) => handle.take_place().await,
            None => Ok(()),
        }
    }

    /// Gives up the place in the gate: the handler does not run any more.
    pub(in crate::dedup) fn leave_gate(&self) {
        if let Some(ticket) = &self.hold.ticket {
            ticket.leave_gate();
        }
    }

    /// Polls the handler, as long as the claim is not lost.
    pub(in crate::dedup) fn poll_run<F: Future>(
        &self,
        inner: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F::Output, LostClaim>> {
        // Not left to the renewal alone: a process that was stopped finds the timers of both due, in any order.
        if self.has_run_out() {
            return Poll::Ready(Err(LostClaim));
        }
        if let Poll::Ready(output) = inner.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let Some(ticket) = &self.hold.ticket else { return Poll::Pending };
        let lost = ticket.with(|entry| {
            if !entry.lost && !entry.handler.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                entry.handler = Some(cx.waker().clone());
            }
            entry.lost
        });
        if lost == Some(false) { Poll::Pending } else { Poll::Ready(Err(LostClaim)) }
    }

    /// Whether somebody else may have the key by now. Most handlers are done before there is a lock to take for that.
    fn has_run_out(&self) -> bool {
        let now = Instant::now();
        let Some(ticket) = self.hold.ticket.as_ref().filter(|_| now >= self.granted_until) else {
            return false;
        };
        let run_out = ticket.with(|entry| {
            entry.lost |= now >= entry.deadline;
            entry.lost
        });
        run_out == Some(true)
    }

    /// From now on the claim belongs to a failure: dropped, it counts `attempts` failed calls.
    pub(in crate::dedup) fn failed(&mut self, attempts: u32) {
        if let Some(ticket) = &self.hold.ticket {
            ticket.with(|entry| {
                entry.attempts = entry.attempts.max(attempts);
                entry.travels = true;
            });
        }
        self.hold.failed = Some(attempts);
    }

    /// Records what became of the claim. Enqueued by the call; the entry stays until the store has answered.
    pub(in crate::dedup) fn resolve<S: DedupStore>(
        mut self,
        store: &S,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Settled> + Send + use<S> {
        let answer = store.resolve(self.claim, resolution, lifetime);
        let settling = Settling(self.hold.ticket.take());
        async move {
            let mut answer = std::pin::pin!(answer);
            let at_once = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
            let answer = match at_once {
                Poll::Ready(answer) => answer,
                Poll::Pending => {
                    settling.leave_gate();
                    answer.await
                }
            };
            let key = if matches!(answer, Ok(Resolved::Applied)) { None } else { settling.key() };
            settling.finish();
            (answer, key)
        }
    }

    /// As [`resolve`](Self::resolve), for layers that do not know the store.
    pub(crate) async fn resolve_failure(self, resolution: Resolution, delay: Duration) {
        let Some(registry) = self.hold.ticket.as_ref().map(|ticket| ticket.registry.clone()) else { return };
        let (answer, key) = self.resolve(&registry.store, resolution, registry.retention + delay).await;
        match answer {
            Ok(Resolved::NotOwner) => {
                tracing::warn!(?key, ?resolution, "claim was lost before its failure was recorded");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(?key, ?resolution, error = %chain(&error), "failure could not be recorded");
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let Some((Some(claim), attempts)) = ticket.with(|entry| (entry.claim(), entry.attempts)) else {
            return;
        };
        let resolution = match self.failed {
            Some(attempts) => Resolution::Failed { attempts },
            None => Resolution::Returned { attempts },
        };
        let registry = &ticket.registry;
        // Enqueued by the call. The entry goes with the answer to this and not to all that is enqueued: a part of the
        // store may be away for long.
        let answer = registry.store.resolve(claim, resolution, registry.retention);
        ticket.leave_gate();
        sync::spawn(async move {
            // An error changes nothing here: the claim then ends with its lease.
            let _ = answer.await;
            drop(ticket);
        });
    }
}

impl fmt::Debug for HeldClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldClaim").field("claim", &self.claim).finish_non_exhaustive()
    }
}

/// A claim whose resolution is enqueued: its entry goes when the store has answered, whoever drops what.
struct Settling(Option<Ticket>);

impl Settling {
    fn leave_gate(&self) {
        if let Some(ticket) = &self.0 {
            ticket.leave_gate();
        }
    }

    fn key(&self) -> Option<StoreKey> {
        self.0.as_ref()?.with(|entry| entry.request.key.clone())
    }

    fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let Some(ticket) = self.0.take() else { return };
        ticket.leave_gate();
        sync::spawn(async move {
            // An error changes nothing here: the claim then ends with its lease.
            let _ = ticket.registry.store.flush().await;
            drop(ticket);
        });
    }
}

/// A claim inside a failure, found again behind foreign wrappers: whoever takes it first resolves it.
#[derive(Debug, Clone)]
pub(crate) struct SharedClaim(Arc<Mutex<Option<HeldClaim>>>);

impl SharedClaim {
    pub(crate) fn new(claim: HeldClaim) -> Self {
        Self(Arc::new(Mutex::new(Some(claim))))
    }

    pub(crate) fn take(&self) -> Option<HeldClaim> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
