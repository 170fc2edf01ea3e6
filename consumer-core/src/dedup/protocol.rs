//! The dedup protocol as a pure function: the specification that every store follows.
//!
//! A store holds a [`State`] for each key and makes each [`Operation`] one atomic step: read, decide as [`transition`]
//! does, write. The in-memory store calls this function; the tests of other stores compare themselves with it.
//!
//! | state | who may claim it |
//! |---|---|
//! | absent | anybody |
//! | claimed | its own owner (a reply was lost); another one once the lease has ended |
//! | completed | nobody, until the retention ends |
//! | released | anybody, with any payload |
//! | deferred | the copy with the attempt it waits for, or a later one |
//! | dead-lettered | a redrive not seen yet, or another payload (a corrected resend) |

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::store::{
    Claim, ClaimReply, ClaimRequest, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
};

/// The state of a key. Times are milliseconds of the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known.
    Absent,
    /// An owner works on it.
    Claimed(Claimed),
    /// The effect has happened. Absorbing until the record's lifetime ends.
    Completed {
        /// The payload it happened for.
        fingerprint: Option<u128>,
    },
    /// Nobody works on it; the numbers are kept.
    Released(Numbers),
    /// A delayed copy exists.
    Deferred {
        /// The attempt the copy asks for.
        attempt: u32,
        /// The numbers kept.
        numbers: Numbers,
    },
    /// A dead letter exists; attempts and crashes are zero.
    DeadLettered(Numbers),
}

/// A claimed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// Who holds it.
    pub owner: Owner,
    /// When its lease ends.
    pub lease_until: u64,
    /// How it runs; anything but [`Mode::Normal`] makes it a suspect.
    pub mode: Mode,
    /// The numbers kept.
    pub numbers: Numbers,
}

/// What is kept of a key from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The fencing token of the last claim.
    pub epoch: u64,
    /// Failed calls over all processes.
    pub attempts: u32,
    /// Deaths of a process that ran this message alone.
    pub crashes: u32,
    /// Whether it has to run alone the next time.
    pub suspect: bool,
    /// The payload it stands for.
    pub fingerprint: Option<u128>,
    /// The highest redrive count that was claimed.
    pub redrive: u32,
}

/// One atomic step.
#[derive(Debug, Clone)]
pub enum Operation<'a> {
    /// [`DedupStore::claim`](super::DedupStore::claim)
    Claim(&'a ClaimRequest),
    /// [`DedupStore::resolve`](super::DedupStore::resolve), with the lifetime of the new record.
    Resolve(&'a Claim, Resolution, Duration),
    /// [`DedupStore::renew`](super::DedupStore::renew), for one claim.
    Renew(&'a RenewRequest),
}

/// The answer to an [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To a claim.
    Claim(ClaimReply),
    /// To a resolution.
    Resolve(Resolved),
    /// To a renewal.
    Renew(Renewal),
}

/// What a step writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The new state.
    pub state: State,
    /// How long the record lives, from now.
    pub lifetime: Duration,
}

/// Decides one step: what is answered and what, if anything, is written. `now` is the store's clock in milliseconds
/// since the Unix epoch; a record whose lifetime has ended counts as [`State::Absent`].
pub fn transition(state: &State, operation: &Operation<'_>, now: u64) -> (Reply, Option<Write>) {
    match operation {
        Operation::Claim(request) => {
            let (reply, write) = claim(state, request, now);
            (Reply::Claim(reply), write)
        }
        Operation::Resolve(claim, resolution, lifetime) => {
            let (reply, state) = resolve(state, claim, *resolution);
            (Reply::Resolve(reply), state.map(|state| Write { state, lifetime: *lifetime }))
        }
        Operation::Renew(request) => {
            let (reply, write) = renew(state, request, now);
            (Reply::Renew(reply), write)
        }
    }
}

/// Two fingerprints differ only when both are known.
fn differ(a: Option<u128>, b: Option<u128>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

fn claim(state: &State, request: &ClaimRequest, now: u64) -> (ClaimReply, Option<Write>) {
    let conflict = |fingerprint| differ(fingerprint, request.fingerprint);
    match *state {
        State::Absent => take(request, Numbers::fresh(now, request), now),
        State::Completed { fingerprint } if conflict(fingerprint) => (ClaimReply::Conflict, None),
        State::Completed { .. } => (ClaimReply::Completed, None),
        State::Claimed(held) if held.owner == request.owner => hold(request, held, now),
        State::Claimed(held) if conflict(held.numbers.fingerprint) => (ClaimReply::Conflict, None),
        State::Claimed(held) if held.lease_until > now => {
            (ClaimReply::Busy { remaining: Duration::from_millis(held.lease_until - now) }, None)
        }
        State::Claimed(expired) => take(request, expired.taken_over(request), now),
        // Another payload is another message: what the old one did is not held against it.
        State::Released(numbers) if conflict(numbers.fingerprint) => {
            take(request, numbers.replaced(request), now)
        }
        State::Released(numbers) => take(request, numbers.continued(request), now),
        State::Deferred { numbers, .. } if conflict(numbers.fingerprint) => (ClaimReply::Conflict, None),
        State::Deferred { attempt, numbers }
            if request.attempt < attempt && request.redrive <= numbers.redrive =>
        {
            (ClaimReply::Superseded, None)
        }
        State::Deferred { numbers, .. } => take(request, numbers.continued(request), now),
        State::DeadLettered(numbers) if conflict(numbers.fingerprint) => {
            take(request, numbers.replaced(request), now)
        }
        State::DeadLettered(numbers) if request.redrive <= numbers.redrive => {
            (ClaimReply::DeadLettered, None)
        }
        State::DeadLettered(numbers) => take(request, numbers.continued(request), now),
    }
}

fn take(request: &ClaimRequest, numbers: Numbers, now: u64) -> (ClaimReply, Option<Write>) {
    let mode = if numbers.suspect { Mode::Suspect } else { Mode::Normal };
    hold(request, Claimed { owner: request.owner, lease_until: 0, mode, numbers }, now)
}

fn hold(request: &ClaimRequest, held: Claimed, now: u64) -> (ClaimReply, Option<Write>) {
    let claim = Claim {
        key: request.key.clone(),
        owner: held.owner,
        epoch: held.numbers.epoch,
        attempts: held.numbers.attempts,
        crashes: held.numbers.crashes,
        suspect: held.mode != Mode::Normal,
        fingerprint: held.numbers.fingerprint,
        redrive: held.numbers.redrive,
        lease: request.lease,
        grace: request.grace,
    };
    let held = Claimed { lease_until: now.saturating_add(millis(request.lease)), ..held };
    let write = Write { state: State::Claimed(held), lifetime: request.lease.saturating_add(request.grace) };
    (ClaimReply::Claimed(claim), Some(write))
}

fn resolve(state: &State, claim: &Claim, resolution: Resolution) -> (Resolved, Option<State>) {
    let own = match *state {
        State::Claimed(held) if held.owner == claim.owner => Some(held),
        _ => None,
    };
    if resolution == Resolution::Completed {
        let reply = match (state, own) {
            (State::Completed { .. }, _) => Resolved::AlreadyCompleted,
            (State::Absent, _) | (_, Some(_)) => Resolved::Applied,
            _ => Resolved::Overlapped,
        };
        return (reply, Some(State::Completed { fingerprint: claim.fingerprint }));
    }
    let Some(held) = own else {
        return (Resolved::NotOwner, None);
    };
    let numbers = held.numbers;
    let next = match resolution {
        Resolution::Completed => return (Resolved::Applied, None),
        Resolution::Returned { attempts } => State::Released(Numbers {
            attempts: numbers.attempts.max(attempts),
            suspect: held.mode != Mode::Normal,
            ..numbers
        }),
        Resolution::Failed { attempts } => {
            State::Released(Numbers { attempts: numbers.attempts.max(attempts), suspect: false, ..numbers })
        }
        Resolution::DeadLettered => {
            State::DeadLettered(Numbers { attempts: 0, crashes: 0, suspect: false, ..numbers })
        }
        Resolution::Deferred { attempt } => State::Deferred {
            attempt,
            numbers: Numbers {
                attempts: numbers.attempts.max(attempt.saturating_sub(1)),
                suspect: false,
                ..numbers
            },
        },
    };
    (Resolved::Applied, Some(next))
}

fn renew(state: &State, request: &RenewRequest, now: u64) -> (Renewal, Option<Write>) {
    match *state {
        State::Claimed(held) if held.owner == request.claim.owner => {
            let numbers = Numbers { attempts: held.numbers.attempts.max(request.attempts), ..held.numbers };
            let lease_until = now.saturating_add(millis(request.claim.lease));
            let state =
                State::Claimed(Claimed { owner: held.owner, lease_until, mode: request.mode, numbers });
            let lifetime = request.claim.lease.saturating_add(request.claim.grace);
            (Renewal::Held, Some(Write { state, lifetime }))
        }
        State::Completed { .. } => (Renewal::Completed, None),
        _ => (Renewal::Lost, None),
    }
}

impl Claimed {
    /// A process that died proves something only if it was another one, and only if the message ran alone in it.
    fn taken_over(&self, request: &ClaimRequest) -> Numbers {
        let died = self.owner.process != request.owner.process;
        let crash = u32::from(died && self.mode == Mode::Alone);
        let numbers = Numbers {
            crashes: self.numbers.crashes.saturating_add(crash),
            suspect: died || self.mode != Mode::Normal,
            ..self.numbers
        };
        numbers.continued(request)
    }
}

impl Numbers {
    fn fresh(epoch: u64, request: &ClaimRequest) -> Self {
        Self {
            epoch,
            attempts: request.attempt.saturating_sub(1),
            crashes: 0,
            suspect: false,
            fingerprint: request.fingerprint,
            redrive: request.redrive,
        }
    }

    /// The next claim with another payload: only the epoch goes on.
    fn replaced(&self, request: &ClaimRequest) -> Self {
        Self::fresh(self.epoch + 1, request)
    }

    /// The next claim of the same message; a redrive not seen yet starts counting anew.
    fn continued(&self, request: &ClaimRequest) -> Self {
        if request.redrive > self.redrive {
            return Self::fresh(self.epoch + 1, request);
        }
        Self {
            epoch: self.epoch + 1,
            attempts: self.attempts.max(request.attempt.saturating_sub(1)),
            fingerprint: request.fingerprint.or(self.fingerprint),
            ..*self
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
