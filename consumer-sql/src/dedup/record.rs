//! Records, and the columns in which they are kept.

use std::collections::HashMap;

use consumer_core::dedup::{
    Mode, Owner,
    parking::Parked,
    protocol::{Claimed, Numbers, State},
};

const CLAIMED: i16 = 1;
const COMPLETED: i16 = 2;
const RELEASED: i16 = 3;
const DEFERRED: i16 = 4;
const DEAD_LETTERED: i16 = 5;

/// The state of a key and when it ends, in milliseconds of the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) state: State,
    pub(crate) expires_at: u64,
}

/// A record, with the number of the write that made it. The first number of a key is random and the others follow, so
/// that a key that was forgotten and comes again is not taken for the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row<T> {
    pub(crate) version: i64,
    pub(crate) record: T,
}

/// Why a row cannot be read. Written by a version that knows more: better no answer than a wrong one.
pub(crate) type Unreadable = String;

/// What was found; a key without a row is not in it.
pub(crate) type Rows<T> = HashMap<u128, Result<Row<T>, Unreadable>>;

/// The columns of `consumer_dedup` behind its key and version.
#[derive(Debug)]
pub(crate) struct Columns {
    pub(crate) state: i16,
    pub(crate) expires_at: i64,
    pub(crate) fingerprint: Option<Vec<u8>>,
    pub(crate) epoch: i64,
    pub(crate) attempts: i64,
    pub(crate) crashes: i64,
    pub(crate) suspect: bool,
    pub(crate) redrive: i64,
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) lease_until: Option<i64>,
    pub(crate) mode: Option<i16>,
    pub(crate) attempt: Option<i64>,
}

impl Columns {
    pub(crate) fn of(kept: &Kept) -> Self {
        let none =
            Numbers { epoch: 0, attempts: 0, crashes: 0, suspect: false, fingerprint: None, redrive: 0 };
        let (state, numbers, claimed, attempt) = match kept.state {
            State::Claimed(claimed) => (CLAIMED, claimed.numbers, Some(claimed), None),
            State::Completed { fingerprint } => (COMPLETED, Numbers { fingerprint, ..none }, None, None),
            // Nothing is known, as of a released key that nobody has claimed yet. No step of the protocol leads there.
            State::Absent => (RELEASED, none, None, None),
            State::Released(numbers) => (RELEASED, numbers, None, None),
            State::Deferred { attempt, numbers } => (DEFERRED, numbers, None, Some(attempt)),
            State::DeadLettered(numbers) => (DEAD_LETTERED, numbers, None, None),
        };
        Self {
            state,
            expires_at: signed(kept.expires_at),
            fingerprint: numbers.fingerprint.map(bytes),
            epoch: signed(numbers.epoch),
            attempts: i64::from(numbers.attempts),
            crashes: i64::from(numbers.crashes),
            suspect: numbers.suspect,
            redrive: i64::from(numbers.redrive),
            owner: claimed
                .map(|Claimed { owner, .. }| [bytes(owner.process), owner.seq.to_be_bytes().into()].concat()),
            lease_until: claimed.map(|claimed| signed(claimed.lease_until)),
            mode: claimed.map(|claimed| match claimed.mode {
                Mode::Normal => 0,
                Mode::Suspect => 1,
                Mode::Alone => 2,
            }),
            attempt: attempt.map(i64::from),
        }
    }

    pub(crate) fn kept(self) -> Result<Kept, Unreadable> {
        let fingerprint = self.fingerprint.as_deref().map(number).transpose()?;
        let numbers = Numbers {
            epoch: unsigned(self.epoch),
            attempts: small(self.attempts),
            crashes: small(self.crashes),
            suspect: self.suspect,
            fingerprint,
            redrive: small(self.redrive),
        };
        let state = match self.state {
            CLAIMED => State::Claimed(Claimed {
                owner: owner(&self.owner.unwrap_or_default())?,
                lease_until: unsigned(self.lease_until.unwrap_or_default()),
                mode: match self.mode {
                    Some(0) => Mode::Normal,
                    Some(1) => Mode::Suspect,
                    _ => Mode::Alone,
                },
                numbers,
            }),
            COMPLETED => State::Completed { fingerprint },
            RELEASED => State::Released(numbers),
            DEFERRED => State::Deferred { attempt: small(self.attempt.unwrap_or_default()), numbers },
            DEAD_LETTERED => State::DeadLettered(numbers),
            other => return Err(format!("the state {other} is not known")),
        };
        Ok(Kept { state, expires_at: unsigned(self.expires_at) })
    }
}

/// A row of `consumer_parked` from its columns.
pub(crate) fn parked(ids: &[u8], until: i64, expires_at: i64) -> Result<Parked, Unreadable> {
    let ids = ids.chunks(16).map(number).collect::<Result<_, _>>()?;
    Ok(Parked { ids, until: unsigned(until), expires_at: unsigned(expires_at) })
}

/// The column `ids`.
pub(crate) fn ids(parked: &Parked) -> Vec<u8> {
    parked.ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}

pub(crate) fn bytes(number: u128) -> Vec<u8> {
    number.to_be_bytes().into()
}

pub(crate) fn number(bytes: &[u8]) -> Result<u128, Unreadable> {
    let bytes = bytes.try_into().map_err(|_| format!("{} bytes where 16 belong", bytes.len()))?;
    Ok(u128::from_be_bytes(bytes))
}

/// The databases' integers have a sign; what is beyond them is as good as for ever.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn small(value: i64) -> u32 {
    u32::try_from(unsigned(value)).unwrap_or(u32::MAX)
}

fn owner(bytes: &[u8]) -> Result<Owner, Unreadable> {
    let wrong = || "an owner that is none".to_owned();
    let (process, seq) = bytes.split_at_checked(16).ok_or_else(wrong)?;
    Ok(Owner { process: number(process)?, seq: u64::from_be_bytes(seq.try_into().map_err(|_| wrong())?) })
}
