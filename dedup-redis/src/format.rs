//! What is stored in Redis, version 1. Public and stable: tools may read it.
//!
//! **Key:** the prefix (by default the four bytes `ic1:`), then the 16 bytes of
//! [`StoreKey::hash`](consumer_core::dedup::StoreKey::hash), big endian. With a prefix of up to six bytes a remembered
//! id costs about 160 bytes of Redis memory at 1,000,000 ids, fingerprint and expiry included.
//!
//! **Value:** numbers are unsigned and big endian. The first byte holds the version of the format in its upper four
//! bits and the state in its lower four.
//!
//! | bytes | content | in |
//! |---|---|---|
//! | 0 | `0x10` completed, `0x11` completed with fingerprint, `0x12` claimed, `0x13` released, `0x14` deferred, `0x15` dead-lettered | all |
//! | 1–16 | fingerprint | `0x11`, which ends here; `0x10` ends before |
//! | 1 | flags: 1 = there is a fingerprint, 2 = has to run alone next time, 4 × mode (0 normal, 1 suspect, 2 alone; 0 unless claimed) | the others |
//! | 2–17 | fingerprint, zeros if there is none | |
//! | 18–25 | epoch | |
//! | 26–29 | attempts | |
//! | 30–33 | crashes | |
//! | 34–37 | redrive count | released and dead-lettered end here |
//! | 38–41 | the attempt the delayed copy asks for | deferred |
//! | 38–53, 54–61 | owner: process, claim | claimed |
//! | 62–69 | grace in milliseconds | claimed |
//!
//! **Expiry:** every record has one. That of a claimed record is lease + grace, so what is left of the lease is `PTTL`
//! less the grace *in the record*: consumers with different settings agree on it.

//!
//! # Lists of parked messages
//!
//! **Key:** the prefix, the 16 bytes of the hash of consumer and message key, and a `p`. One for each message key of which a
//! message waits for its delayed retry.
//!
//! **Value:** a sorted set. A member of 16 bytes is the hash of the idempotency key of a message that waits, big endian; the
//! scores, from 1 on, are their order. The member `u`, where there is one, has the time in milliseconds at which the first of
//! them comes back, negated. With a prefix of four bytes a list takes about 200 bytes, and about 60 more for each message.
//!
//! **Expiry:** the retention and the longest delay, from when the first message is due. It is set anew when another one
//! becomes the first.

use std::fmt;

use consumer_core::dedup::{
    Mode, Owner, StoreKey,
    protocol::{Claimed, Numbers, State},
};

const COMPLETED: u8 = 0x10;
const COMPLETED_FOR: u8 = 0x11;
const CLAIMED: u8 = 0x12;
const RELEASED: u8 = 0x13;
const DEFERRED: u8 = 0x14;
const DEAD_LETTERED: u8 = 0x15;

const HAS_FINGERPRINT: u8 = 1;
const SUSPECT: u8 = 2;

const NUMBERS: usize = 38;
/// The longest record, that of a claim.
const LONGEST: usize = NUMBERS + 32;
/// Milliseconds and epochs stay exact in Lua, whose numbers are doubles.
pub(crate) const MAX_NUMBER: u64 = (1 << 53) - 1;

/// One stored record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// An owner works on the key. The end of its lease follows from the record's expiry and `grace_ms`.
    Claimed {
        /// Who holds it.
        owner: Owner,
        /// How it runs.
        mode: Mode,
        /// The numbers kept.
        numbers: Numbers,
        /// How many milliseconds the record outlives its lease.
        grace_ms: u64,
    },
    /// The effect has happened.
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
    /// A dead letter exists.
    DeadLettered(Numbers),
}

/// A value that is no record of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    first: Option<u8>,
    length: usize,
}

impl FormatError {
    /// Whether it looks like a record of another version of this format.
    pub fn is_other_version(&self) -> bool {
        self.first.is_some_and(|first| first >> 4 != COMPLETED >> 4)
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            Some(first) => {
                write!(f, "no record of format 1: {} bytes beginning with {first:#04x}", self.length)
            }
            None => f.write_str("no record of format 1: an empty value"),
        }
    }
}

impl std::error::Error for FormatError {}

/// The bytes of a record, on the stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoded {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Encoded {
    fn new() -> Self {
        Self { bytes: [0; LONGEST], length: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.length + bytes.len();
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
        self
    }
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Record {
    /// The bytes that are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode().as_ref().to_vec()
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// When it is no record of this version. Never panics, whatever the bytes are.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        decode(bytes).ok_or(FormatError { first: bytes.first().copied(), length: bytes.len() })
    }

    /// The state in the words of the protocol; `now` and the time the record has left are of the same clock, in
    /// milliseconds.
    pub fn to_state(&self, now: u64, ttl_ms: u64) -> State {
        match *self {
            Self::Claimed { owner, mode, numbers, grace_ms } => State::Claimed(Claimed {
                owner,
                lease_until: now.saturating_add(ttl_ms).saturating_sub(grace_ms),
                mode,
                numbers,
            }),
            Self::Completed { fingerprint } => State::Completed { fingerprint },
            Self::Released(numbers) => State::Released(numbers),
            Self::Deferred { attempt, numbers } => State::Deferred { attempt, numbers },
            Self::DeadLettered(numbers) => State::DeadLettered(numbers),
        }
    }

    pub(crate) fn encode(&self) -> Encoded {
        let mut out = Encoded::new();
        match self {
            Self::Completed { fingerprint: None } => {
                out.put(&[COMPLETED]);
            }
            Self::Completed { fingerprint: Some(fingerprint) } => {
                out.put(&[COMPLETED_FOR]).put(&fingerprint.to_be_bytes());
            }
            Self::Claimed { owner, mode, numbers, grace_ms } => {
                put_numbers(&mut out, CLAIMED, *mode, numbers);
                out.put(&encode_owner(owner)).put(&grace_ms.to_be_bytes());
            }
            Self::Released(numbers) => put_numbers(&mut out, RELEASED, Mode::Normal, numbers),
            Self::Deferred { attempt, numbers } => {
                put_numbers(&mut out, DEFERRED, Mode::Normal, numbers);
                out.put(&attempt.to_be_bytes());
            }
            Self::DeadLettered(numbers) => put_numbers(&mut out, DEAD_LETTERED, Mode::Normal, numbers),
        }
        out
    }
}

fn put_numbers(out: &mut Encoded, tag: u8, mode: Mode, numbers: &Numbers) {
    let mut flags = encode_mode(mode) << 2;
    if numbers.fingerprint.is_some() {
        flags |= HAS_FINGERPRINT;
    }
    if numbers.suspect {
        flags |= SUSPECT;
    }
    out.put(&[tag, flags])
        .put(&numbers.fingerprint.unwrap_or(0).to_be_bytes())
        .put(&numbers.epoch.to_be_bytes())
        .put(&numbers.attempts.to_be_bytes())
        .put(&numbers.crashes.to_be_bytes())
        .put(&numbers.redrive.to_be_bytes());
}

/// The key of the list of parked messages of a message key.
pub fn list_key(prefix: &[u8], key: &StoreKey) -> Vec<u8> {
    [prefix, &key.hash().to_be_bytes(), b"p"].concat()
}

/// An owner as the scripts compare it: 24 bytes.
pub(crate) fn encode_owner(owner: &Owner) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&owner.process.to_be_bytes());
    bytes[16..].copy_from_slice(&owner.seq.to_be_bytes());
    bytes
}

pub(crate) fn encode_mode(mode: Mode) -> u8 {
    match mode {
        Mode::Normal => 0,
        Mode::Suspect => 1,
        Mode::Alone => 2,
    }
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let (&tag, rest) = bytes.split_first()?;
    match tag {
        COMPLETED if rest.is_empty() => return Some(Record::Completed { fingerprint: None }),
        COMPLETED_FOR => {
            let fingerprint = u128::from_be_bytes(rest.try_into().ok()?);
            return Some(Record::Completed { fingerprint: Some(fingerprint) });
        }
        _ => {}
    }
    let (&flags, rest) = rest.split_first()?;
    let (fingerprint, rest) = take(rest)?;
    let (epoch, rest) = take(rest)?;
    let (attempts, rest) = take(rest)?;
    let (crashes, rest) = take(rest)?;
    let (redrive, rest) = take(rest)?;
    let numbers = Numbers {
        epoch: u64::from_be_bytes(epoch),
        attempts: u32::from_be_bytes(attempts),
        crashes: u32::from_be_bytes(crashes),
        suspect: flags & SUSPECT != 0,
        fingerprint: (flags & HAS_FINGERPRINT != 0).then(|| u128::from_be_bytes(fingerprint)),
        redrive: u32::from_be_bytes(redrive),
    };
    let mode = match flags >> 2 {
        0 => Mode::Normal,
        1 => Mode::Suspect,
        2 => Mode::Alone,
        _ => return None,
    };
    match tag {
        CLAIMED => {
            let (process, rest) = take(rest)?;
            let (seq, rest) = take(rest)?;
            let owner = Owner { process: u128::from_be_bytes(process), seq: u64::from_be_bytes(seq) };
            let grace_ms = u64::from_be_bytes(rest.try_into().ok()?);
            Some(Record::Claimed { owner, mode, numbers, grace_ms })
        }
        DEFERRED => {
            let attempt = u32::from_be_bytes(rest.try_into().ok()?);
            Some(Record::Deferred { attempt, numbers })
        }
        RELEASED if rest.is_empty() => Some(Record::Released(numbers)),
        DEAD_LETTERED if rest.is_empty() => Some(Record::DeadLettered(numbers)),
        _ => None,
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers() -> impl Strategy<Value = Numbers> {
        (any::<u64>(), any::<u32>(), any::<u32>(), any::<bool>(), any::<Option<u128>>(), any::<u32>())
            .prop_map(|(epoch, attempts, crashes, suspect, fingerprint, redrive)| Numbers {
                epoch,
                attempts,
                crashes,
                suspect,
                fingerprint,
                redrive,
            })
    }

    fn record() -> impl Strategy<Value = Record> {
        let mode = prop_oneof![Just(Mode::Normal), Just(Mode::Suspect), Just(Mode::Alone)];
        prop_oneof![
            any::<Option<u128>>().prop_map(|fingerprint| Record::Completed { fingerprint }),
            (any::<u128>(), any::<u64>(), mode, numbers(), any::<u64>()).prop_map(
                |(process, seq, mode, numbers, grace_ms)| Record::Claimed {
                    owner: Owner { process, seq },
                    mode,
                    numbers,
                    grace_ms
                }
            ),
            numbers().prop_map(Record::Released),
            (any::<u32>(), numbers()).prop_map(|(attempt, numbers)| Record::Deferred { attempt, numbers }),
            numbers().prop_map(Record::DeadLettered),
        ]
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(record in record()) {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
        }

        #[test]
        fn whatever_reads_at_all_is_written_the_same_way(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(Record::Completed { fingerprint }) = Record::from_bytes(&bytes) {
                prop_assert_eq!(Record::Completed { fingerprint }.to_bytes(), bytes);
            }
        }

        #[test]
        fn a_cut_or_prolonged_record_is_refused(record in record(), by in 1usize..70) {
            let bytes = record.to_bytes();
            prop_assert!(by >= bytes.len() || Record::from_bytes(&bytes[..bytes.len() - by]).is_err());
            let mut longer = bytes;
            longer.resize(longer.len() + by, 0);
            // One byte and 17 bytes are both completed records, told apart by the tag.
            prop_assert!(Record::from_bytes(&longer).is_err());
        }
    }

    #[test]
    fn the_layout_does_not_change() {
        let numbers = Numbers {
            epoch: 0x0102_0304,
            attempts: 5,
            crashes: 6,
            suspect: true,
            fingerprint: Some(7),
            redrive: 8,
        };
        let owner = Owner { process: 9, seq: 10 };
        let bytes = Record::Claimed { owner, mode: Mode::Alone, numbers, grace_ms: 11 }.to_bytes();
        let mut expected = vec![0x12, 0b1011];
        expected.extend(7u128.to_be_bytes());
        expected.extend([0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 8]);
        expected.extend(9u128.to_be_bytes());
        expected.extend([0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 11]);
        assert_eq!(bytes, expected);
        assert_eq!(Record::Completed { fingerprint: None }.to_bytes(), [0x10]);
        assert_eq!(Record::Completed { fingerprint: Some(1) }.to_bytes().len(), 17);
    }

    #[test]
    fn another_version_is_an_error_that_says_so() {
        let error = Record::from_bytes(&[0x20]).unwrap_err();
        assert!(error.is_other_version());
        assert_eq!(error.to_string(), "no record of format 1: 1 bytes beginning with 0x20");
        assert!(!Record::from_bytes(&[]).unwrap_err().is_other_version());
        assert!(Record::from_bytes(&[0x16; 38]).is_err());
    }
}
