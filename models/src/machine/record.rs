//! A record of the store, small enough to be counted by the million, and its way to the protocol's own state and back.
//!
//! What is left out does not matter to [`transition`]: an epoch is only ever one more than the last, times are only ever
//! compared with now. So a record has no epoch, and of a lease what is left. `a_record_is_as_good_as_the_state` in the
//! tests of this module holds that up.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use consumer_core::dedup::{
    Claim, ClaimRequest, Mode, Owner as Nonce, RenewRequest, Resolution, StoreKey,
    protocol::{self, Claimed, Operation, Reply, State, Write, transition},
};

/// A lease in ticks. The client counts one less: it stops before the store gives the key away.
pub const LEASE: u8 = 2;
/// How long a record is kept; longer than any run of the model.
pub(super) const RETENTION: Duration = Duration::from_hours(1);

const TICK: Duration = Duration::from_secs(10);
/// The store's clock. All times are told from here.
const NOW: u64 = 1 << 40;
/// The highest epoch that was granted. Far below the clock, as claims are slower than one in a millisecond.
const HIGHEST: u64 = 1 << 30;

/// A nonce: of a process, and of a claim in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Which process; one that died has a number that no living one has.
    pub process: u8,
    /// Which claim of it.
    pub claim: u8,
}

/// What is kept of a key, but its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Numbers {
    /// Failed calls.
    pub attempts: u8,
    /// Deaths alone.
    pub crashes: u8,
    /// Whether it has to run alone.
    pub suspect: bool,
    /// The highest redrive count claimed.
    pub redrive: u8,
}

/// The state of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Record {
    /// See [`State::Absent`].
    Absent,
    /// See [`State::Claimed`].
    Claimed {
        /// Who holds it.
        owner: Owner,
        /// Ticks until its lease ends.
        left: u8,
        /// Whether it runs [`Mode::Normal`], [`Mode::Suspect`] or [`Mode::Alone`].
        mode: u8,
        /// What is kept.
        numbers: Numbers,
    },
    /// See [`State::Completed`].
    Completed,
    /// See [`State::Released`].
    Released(Numbers),
    /// See [`State::Deferred`].
    Deferred {
        /// The attempt the copy asks for.
        attempt: u8,
        /// What is kept.
        numbers: Numbers,
    },
    /// See [`State::DeadLettered`].
    DeadLettered(Numbers),
}

/// One operation on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op {
    /// The nonce it carries.
    pub owner: Owner,
    /// What it asks.
    pub what: What,
}

/// What an operation asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// The key.
    Claim {
        /// The attempt that the message asks for.
        attempt: u8,
        /// How often it was redriven.
        redrive: u8,
    },
    /// That the claim is prolonged.
    Renew {
        /// Failed calls so far.
        attempts: u8,
        /// How it runs.
        mode: u8,
    },
    /// [`Resolution::Completed`]
    Complete,
    /// [`Resolution::Returned`]
    Return {
        /// Failed calls so far.
        attempts: u8,
    },
    /// [`Resolution::Failed`]
    Fail {
        /// Failed calls so far.
        attempts: u8,
    },
    /// [`Resolution::DeadLettered`]
    DeadLetter,
    /// [`Resolution::Deferred`]
    Defer {
        /// The attempt that the copy asks for.
        attempt: u8,
    },
}

/// What the protocol decided.
#[derive(Debug)]
pub(super) struct Decided {
    /// The answer.
    pub(super) reply: Reply,
    /// The new record, and how long it is kept.
    pub(super) write: Option<(Record, Duration)>,
    /// The epoch written less the highest granted before; `None` where none is written.
    pub(super) epoch: Option<i64>,
}

/// Asks [`transition`], the function that the stores follow. `behind` is how far the epoch of the record is below the
/// highest ever granted: something only where the store lost data.
pub(super) fn decide(record: Record, behind: u8, op: Op) -> Decided {
    let state = record.state(behind);
    let owner = op.owner.nonce();
    let (reply, write) = match op.what {
        What::Claim { attempt, redrive } => {
            let request = ClaimRequest {
                key: key(),
                owner,
                fingerprint: Some(1),
                lease: TICK * u32::from(LEASE),
                grace: RETENTION,
                attempt: attempt.into(),
                redrive: redrive.into(),
            };
            transition(&state, &Operation::Claim(&request), NOW)
        }
        What::Renew { attempts, mode } => {
            let mode = [Mode::Normal, Mode::Suspect, Mode::Alone][usize::from(mode)];
            let request = RenewRequest { claim: claim(owner), attempts: attempts.into(), mode };
            transition(&state, &Operation::Renew(&request), NOW)
        }
        What::Complete => resolve(&state, owner, Resolution::Completed),
        What::Return { attempts } => {
            resolve(&state, owner, Resolution::Returned { attempts: attempts.into() })
        }
        What::Fail { attempts } => resolve(&state, owner, Resolution::Failed { attempts: attempts.into() }),
        What::DeadLetter => resolve(&state, owner, Resolution::DeadLettered),
        What::Defer { attempt } => resolve(&state, owner, Resolution::Deferred { attempt: attempt.into() }),
    };
    let epoch = write.as_ref().and_then(|write| epoch_of(&write.state));
    let epoch = epoch.map(|epoch| epoch.cast_signed() - HIGHEST.cast_signed());
    Decided { reply, write: write.map(|Write { state, lifetime }| (Record::of(&state), lifetime)), epoch }
}

fn resolve(state: &State, owner: Nonce, resolution: Resolution) -> (Reply, Option<Write>) {
    transition(state, &Operation::Resolve(&claim(owner), resolution, RETENTION), NOW)
}

fn key() -> StoreKey {
    static KEY: OnceLock<StoreKey> = OnceLock::new();
    KEY.get_or_init(|| StoreKey::new(Arc::from("consumer"), Bytes::from_static(b"key"))).clone()
}

/// As the layer has it; a resolution and a renewal look at its owner and its fingerprint.
fn claim(owner: Nonce) -> Claim {
    Claim {
        key: key(),
        owner,
        epoch: 0,
        attempts: 0,
        crashes: 0,
        suspect: false,
        fingerprint: Some(1),
        redrive: 0,
        lease: TICK * u32::from(LEASE),
        grace: RETENTION,
    }
}

fn epoch_of(state: &State) -> Option<u64> {
    match state {
        State::Absent | State::Completed { .. } => None,
        State::Claimed(Claimed { numbers, .. })
        | State::Released(numbers)
        | State::Deferred { numbers, .. }
        | State::DeadLettered(numbers) => Some(numbers.epoch),
    }
}

fn small(number: impl TryInto<u8>) -> u8 {
    number.try_into().unwrap_or(u8::MAX)
}

impl Owner {
    fn nonce(self) -> Nonce {
        Nonce { process: self.process.into(), seq: self.claim.into() }
    }
}

impl Numbers {
    fn whole(self, behind: u8) -> protocol::Numbers {
        protocol::Numbers {
            epoch: HIGHEST - u64::from(behind),
            attempts: self.attempts.into(),
            crashes: self.crashes.into(),
            suspect: self.suspect,
            fingerprint: Some(1),
            redrive: self.redrive.into(),
        }
    }

    fn of(numbers: &protocol::Numbers) -> Self {
        Self {
            attempts: small(numbers.attempts),
            crashes: small(numbers.crashes),
            suspect: numbers.suspect,
            redrive: small(numbers.redrive),
        }
    }
}

impl Record {
    /// As the protocol has it.
    pub fn state(self, behind: u8) -> State {
        match self {
            Record::Absent => State::Absent,
            Record::Claimed { owner, left, mode, numbers } => State::Claimed(Claimed {
                owner: owner.nonce(),
                lease_until: NOW + u64::from(left) * TICK.as_secs() * 1000,
                mode: [Mode::Normal, Mode::Suspect, Mode::Alone][usize::from(mode)],
                numbers: numbers.whole(behind),
            }),
            Record::Completed => State::Completed { fingerprint: Some(1) },
            Record::Released(numbers) => State::Released(numbers.whole(behind)),
            Record::Deferred { attempt, numbers } => {
                State::Deferred { attempt: attempt.into(), numbers: numbers.whole(behind) }
            }
            Record::DeadLettered(numbers) => State::DeadLettered(numbers.whole(behind)),
        }
    }

    /// As the model has it.
    pub fn of(state: &State) -> Self {
        match state {
            State::Absent => Record::Absent,
            State::Claimed(held) => Record::Claimed {
                owner: Owner { process: small(held.owner.process), claim: small(held.owner.seq) },
                left: small(held.lease_until.saturating_sub(NOW) / (TICK.as_secs() * 1000)),
                mode: held.mode as u8,
                numbers: Numbers::of(&held.numbers),
            },
            State::Completed { .. } => Record::Completed,
            State::Released(numbers) => Record::Released(Numbers::of(numbers)),
            State::Deferred { attempt, numbers } => {
                Record::Deferred { attempt: small(*attempt), numbers: Numbers::of(numbers) }
            }
            State::DeadLettered(numbers) => Record::DeadLettered(Numbers::of(numbers)),
        }
    }

    /// The owner of an unexpired claim.
    pub fn held_by(self) -> Option<Owner> {
        match self {
            Record::Claimed { owner, left, .. } if left > 0 => Some(owner),
            _ => None,
        }
    }

    /// The numbers, where there are some.
    pub fn numbers(self) -> Option<Numbers> {
        match self {
            Record::Absent | Record::Completed => None,
            Record::Claimed { numbers, .. }
            | Record::Released(numbers)
            | Record::Deferred { numbers, .. }
            | Record::DeadLettered(numbers) => Some(numbers),
        }
    }
}
