//! The facts of one key, kept without the protocol's states, and what may be answered in the face of them.

use std::time::Duration;

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
};

#[derive(Default)]
pub(super) struct Ledger {
    /// The highest epoch that was ever granted. Never forgotten.
    epoch: u64,
    /// When the store may forget the rest.
    until: u64,
    facts: Facts,
}

#[derive(Default)]
struct Facts {
    /// Whether the store knows anything of the key.
    known: bool,
    completed: bool,
    holder: Option<Holder>,
    deferred_to: Option<u32>,
    dead_lettered: bool,
    payload: Option<u128>,
    failed_calls: u32,
    crashes: u32,
    redrive: u32,
    suspect: bool,
}

/// The last one to whom the key was granted, until it says what became of it.
#[derive(Clone, Copy)]
struct Holder {
    owner: Owner,
    lease_until: u64,
    mode: Mode,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn check(holds: bool, rule: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(rule()) }
}

impl Ledger {
    fn lapse(&mut self, now: u64) {
        if now >= self.until {
            self.facts = Facts::default();
        }
    }

    pub(super) fn claim(
        &mut self,
        request: &ClaimRequest,
        reply: &ClaimReply,
        now: u64,
        tolerance: Duration,
    ) -> Result<(), String> {
        self.lapse(now);
        let facts = &self.facts;
        let differs = matches!((facts.payload, request.fingerprint), (Some(a), Some(b)) if a != b);
        let other = facts.holder.filter(|holder| holder.owner != request.owner);
        let newly_redriven = request.redrive > facts.redrive;
        match reply {
            ClaimReply::Claimed(claim) => self.granted(request, claim, differs, now),
            ClaimReply::Completed => {
                check(facts.completed, || "answered completed, and nobody has completed it".into())?;
                check(!differs, || "another payload was answered as completed: a conflict was acked".into())
            }
            ClaimReply::Superseded => {
                check(!differs, || "another payload was superseded: a conflict was acked".into())?;
                let later = facts.deferred_to.is_some_and(|attempt| request.attempt < attempt);
                check(later, || "superseded by nothing: the message is lost".into())?;
                check(!newly_redriven, || "a redrive was superseded: it is lost".into())
            }
            ClaimReply::DeadLettered => {
                check(!differs, || "a corrected payload was answered as dead-lettered: it is lost".into())?;
                check(facts.dead_lettered, || "dead-lettered by nobody: the message is lost".into())?;
                check(!newly_redriven, || "a redrive was answered as dead-lettered: it is lost".into())
            }
            ClaimReply::Busy { remaining } => {
                let holder = other.filter(|holder| holder.lease_until > now);
                let holder = holder.ok_or("busy, and nobody else holds an unexpired claim")?;
                let left = Duration::from_millis(holder.lease_until - now);
                check(remaining.abs_diff(left) <= tolerance, || {
                    format!("busy for {remaining:?}, and {left:?} of the lease are left")
                })
            }
            ClaimReply::Conflict => {
                let stands = facts.completed || other.is_some() || facts.deferred_to.is_some();
                check(differs && stands, || "a conflict with nothing".into())
            }
            other => Err(format!("unknown reply {other:?}")),
        }
    }

    fn granted(
        &mut self,
        request: &ClaimRequest,
        claim: &Claim,
        differs: bool,
        now: u64,
    ) -> Result<(), String> {
        let facts = &mut self.facts;
        check(!facts.completed, || "granted, though completed: the effect happens again".into())?;
        let own = facts.holder.filter(|holder| holder.owner == request.owner);
        let expired = facts.holder.filter(|holder| holder.owner != request.owner);
        if let Some(holder) = expired {
            check(holder.lease_until <= now, || "two unexpired claims of one key".into())?;
        }
        check(!(differs && (expired.is_some() || facts.deferred_to.is_some())), || {
            "another payload was granted, though the first may have had its effect".into()
        })?;
        let newly_redriven = request.redrive > facts.redrive;
        if let Some(attempt) = facts.deferred_to {
            check(request.attempt >= attempt || newly_redriven, || {
                format!("attempt {} was granted beside the delayed copy with {attempt}", request.attempt)
            })?;
        }
        check(!facts.dead_lettered || differs || newly_redriven, || {
            "a dead-lettered message was granted without a redrive".into()
        })?;
        if own.is_some() {
            check(claim.epoch == self.epoch, || "asking again has changed the epoch".into())?;
        } else {
            check(claim.epoch > self.epoch, || {
                format!("epoch {} after {}: epochs have to grow", claim.epoch, self.epoch)
            })?;
            check(!facts.known || claim.epoch == self.epoch + 1, || {
                format!("epoch {} after {}: every claim adds one", claim.epoch, self.epoch)
            })?;
        }
        match (own, expired) {
            (Some(holder), _) => facts.suspect = holder.mode != Mode::Normal,
            (None, Some(holder)) => {
                let died = holder.owner.process != request.owner.process;
                facts.crashes += u32::from(died && holder.mode == Mode::Alone);
                facts.suspect = died || holder.mode != Mode::Normal;
            }
            (None, None) => {}
        }
        if own.is_none() && (!facts.known || differs || newly_redriven) {
            let redrive = request.redrive;
            *facts = Facts { known: true, redrive, ..Facts::default() };
        }
        if own.is_none() {
            facts.failed_calls = facts.failed_calls.max(request.attempt - 1);
            facts.payload = request.fingerprint.or(facts.payload);
        }
        facts.deferred_to = None;
        facts.dead_lettered = false;
        check(claim.attempts == facts.failed_calls, || {
            format!("{} failed calls are known, the claim says {}", facts.failed_calls, claim.attempts)
        })?;
        check(claim.crashes == facts.crashes, || {
            format!("{} processes died running it alone, the claim says {}", facts.crashes, claim.crashes)
        })?;
        check(claim.suspect == facts.suspect, || {
            format!("suspect: {} is right, the claim says {}", facts.suspect, claim.suspect)
        })?;
        check(claim.owner == request.owner && claim.key == request.key, || "granted to another".into())?;
        check(claim.redrive == facts.redrive, || {
            format!("redrive {} instead of {}", claim.redrive, facts.redrive)
        })?;
        let mode = match own {
            Some(holder) => holder.mode,
            None if facts.suspect => Mode::Suspect,
            None => Mode::Normal,
        };
        facts.holder = Some(Holder { owner: claim.owner, lease_until: now + millis(request.lease), mode });
        self.epoch = claim.epoch;
        self.until = now + millis(request.lease + request.grace);
        Ok(())
    }

    /// `answer` is none when the reply was lost.
    pub(super) fn resolve(
        &mut self,
        claim: &Claim,
        resolution: Resolution,
        answer: Option<Resolved>,
        now: u64,
        lifetime: Duration,
    ) -> Result<(), String> {
        self.lapse(now);
        let facts = &mut self.facts;
        let holder = facts.holder.filter(|holder| holder.owner == claim.owner);
        let right = match (resolution, holder) {
            (Resolution::Completed, _) if facts.completed => Resolved::AlreadyCompleted,
            (Resolution::Completed, None) if facts.known => Resolved::Overlapped,
            (Resolution::Completed, _) | (_, Some(_)) => Resolved::Applied,
            (_, None) => Resolved::NotOwner,
        };
        if let Some(answer) = answer {
            check(answer == right, || {
                format!("{resolution:?} was answered {answer:?} instead of {right:?}")
            })?;
        }
        match (resolution, holder) {
            (Resolution::Completed, _) => {
                *facts =
                    Facts { known: true, completed: true, payload: claim.fingerprint, ..Facts::default() };
            }
            (_, None) => return Ok(()),
            (Resolution::Returned { attempts }, Some(holder)) => {
                facts.failed_calls = facts.failed_calls.max(attempts);
                facts.suspect = holder.mode != Mode::Normal;
            }
            (Resolution::Failed { attempts }, Some(_)) => {
                facts.failed_calls = facts.failed_calls.max(attempts);
                facts.suspect = false;
            }
            (Resolution::DeadLettered, Some(_)) => {
                facts.dead_lettered = true;
                (facts.failed_calls, facts.crashes, facts.suspect) = (0, 0, false);
            }
            (Resolution::Deferred { attempt }, Some(_)) => {
                facts.deferred_to = Some(attempt);
                facts.failed_calls = facts.failed_calls.max(attempt - 1);
                facts.suspect = false;
            }
            (other, Some(_)) => return Err(format!("unknown resolution {other:?}")),
        }
        facts.holder = None;
        self.until = now + millis(lifetime);
        Ok(())
    }

    /// `answer` is none when the reply was lost.
    pub(super) fn renew(
        &mut self,
        request: &RenewRequest,
        answer: Option<Renewal>,
        now: u64,
    ) -> Result<(), String> {
        self.lapse(now);
        let facts = &mut self.facts;
        let right = match &mut facts.holder {
            Some(holder) if holder.owner == request.claim.owner => {
                holder.lease_until = now + millis(request.claim.lease);
                holder.mode = request.mode;
                facts.failed_calls = facts.failed_calls.max(request.attempts);
                self.until = now + millis(request.claim.lease + request.claim.grace);
                Renewal::Held
            }
            _ if facts.completed => Renewal::Completed,
            _ => Renewal::Lost,
        };
        match answer {
            Some(answer) => {
                check(answer == right, || format!("a renewal was answered {answer:?} instead of {right:?}"))
            }
            None => Ok(()),
        }
    }
}
