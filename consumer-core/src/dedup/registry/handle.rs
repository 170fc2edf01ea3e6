//! What the layers inside have of a claim.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use super::{Entry, LostClaim, Registry, Ticket};
use crate::{
    dedup::{DedupStore, Mode, Renewal, gate::Pass},
    sync,
};

/// What a message carries inward: lets retries report their failed calls and waiting layers leave the gate.
#[derive(Clone)]
pub(crate) struct ClaimHandle {
    registry: Arc<Registry>,
    hash: u128,
    seq: u64,
}

impl Ticket {
    pub(in crate::dedup) fn handle(&self) -> ClaimHandle {
        ClaimHandle { registry: self.registry.clone(), hash: self.hash, seq: self.seq }
    }
}

impl ClaimHandle {
    fn with<T>(&self, apply: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.registry.lock();
        entries.by_key.get_mut(&self.hash).filter(|entry| entry.seq == self.seq).map(apply)
    }

    /// A call of the handler has ended.
    pub(crate) fn count_call(&self, ok: bool) {
        self.registry.meter.called(ok);
    }

    /// Records that so many calls of this message have failed over all processes.
    pub(crate) fn failed_calls(&self, attempts: u32) {
        self.with(|entry| entry.attempts = entry.attempts.max(attempts));
    }

    /// Gives the place in the gate to others. A suspect first tells the store that it is not alone any more, for dying
    /// from then on proves nothing; if the store cannot be told, it stays alone.
    pub(crate) async fn leave_gate(&self) {
        let told = self.with(|entry| match entry.pass {
            Pass::Alone => entry.renewal(Mode::Suspect),
            _ => None,
        });
        if let Some(Some(request)) = told {
            match self.registry.store.renew(vec![request]).await.as_deref() {
                Ok([Renewal::Held]) => {}
                _ => return,
            }
        }
        let pass = self.with(|entry| {
            if entry.pass == Pass::Alone {
                entry.mode = Mode::Suspect;
            }
            std::mem::replace(&mut entry.pass, Pass::Outside)
        });
        self.registry.gate.leave(pass.unwrap_or(Pass::Outside));
    }

    /// Takes a place again. Of a claim that was lost meanwhile the future ends with the claim: whoever runs the handler
    /// drops it.
    pub(crate) async fn enter_gate(&self) {
        if self.with(|entry| entry.pass) != Some(Pass::Outside) {
            return;
        }
        if self.take_place().await.is_err() {
            self.with(Entry::lose);
            self.gone().await;
        }
    }

    /// Waits until the entry is gone.
    async fn gone(&self) {
        poll_fn(|cx| match self.with(|entry| entry.join(cx.waker())) {
            Some(()) => Poll::Pending,
            None => Poll::Ready(()),
        })
        .await
    }

    /// Takes a place in the gate: beside others, or alone for a suspect, which the store is told before it runs. The
    /// entry keeps the place and gives it back however the work ends.
    ///
    /// # Errors
    /// When the claim was lost while waiting.
    pub(in crate::dedup) async fn take_place(&self) -> Result<(), LostClaim> {
        let alone = self.with(|entry| entry.granted.is_some_and(|granted| granted.suspect));
        let alone = alone.ok_or(LostClaim)?;
        let gate = &self.registry.gate;
        let mut entering = pin!(gate.enter(alone));
        let pass = loop {
            // Another wait of the same message may come first: a message has one place, and must not wait for one more,
            // behind a suspect that waits for the one it has.
            let mut taken = pin!(gate.placed());
            taken.as_mut().enable();
            if self.with(|entry| entry.pass).ok_or(LostClaim)? != Pass::Outside {
                return Ok(());
            }
            tokio::select! {
                biased;
                pass = &mut entering => break pass,
                () = taken => {}
            }
        };
        let placed = self.with(|entry| match entry.pass {
            Pass::Outside => (std::mem::replace(&mut entry.pass, pass), entry.lost),
            _ => (pass, entry.lost),
        });
        let (spare, lost) = placed.unwrap_or((pass, true));
        gate.has_placed();
        gate.leave(spare);
        if lost {
            return Err(LostClaim);
        }
        if alone {
            self.announce_alone().await?;
        }
        Ok(())
    }

    /// Tells the store that dying from now on counts as a crash.
    async fn announce_alone(&self) -> Result<(), LostClaim> {
        loop {
            let request = self.with(|entry| entry.renewal(Mode::Alone)).flatten().ok_or(LostClaim)?;
            let pause = request.claim.lease / 20;
            match self.registry.store.renew(vec![request]).await.as_deref() {
                Ok([Renewal::Held]) => {
                    self.with(|entry| entry.mode = Mode::Alone);
                    return Ok(());
                }
                Ok(_) => return Err(LostClaim),
                Err(_) if self.with(|entry| entry.lost) != Some(false) => return Err(LostClaim),
                Err(_) => sync::sleep(pause).await,
            }
        }
    }
}
