//! What a part of the store in memory knows of its keys, packed.

use std::hash::{Hash, Hasher};

use super::{
    store::StoreStats,
    swept::{Expires, Swept},
};
use crate::dedup::{
    ParkReply, ParkRequest,
    parking::Parked,
    protocol::{self, Operation, Reply, State},
};

#[derive(Default)]
pub(super) struct Records {
    /// Keys in any state but completed: few, so that they stay in the processor's cache. What is alive here goes
    /// before what is in `completed`.
    open: Swept<u128, Record>,
    /// Completed keys: many, so each is kept small.
    completed: Swept<Key, Completed>,
    /// Message keys of which messages wait, by hashes of their own.
    parked: Swept<u128, Parked>,
    pub(super) stats: StoreStats,
}

struct Record {
    state: State,
    expires_at: u64,
}

/// The hash of a key, aligned as its halves are: with a `u128` an entry would take 48 bytes instead of 40.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Key(Halves);

struct Completed {
    fingerprint: Halves,
    /// Shifted left by one; the lowest bit says whether there is a fingerprint.
    expires_at: u64,
}

type Halves = [u64; 2];

impl Records {
    /// What is known of a key.
    pub(super) fn state(&self, key: u128, now: u64) -> State {
        if let Some(record) = self.open.by_key.get(&key).filter(|record| record.is_alive(now)) {
            return record.state;
        }
        match self.completed.by_key.get(&Key::of(key)).filter(|completed| completed.is_alive(now)) {
            Some(completed) => State::Completed { fingerprint: completed.fingerprint() },
            None => State::Absent,
        }
    }

    pub(super) fn apply(&mut self, key: u128, operation: &Operation<'_>, now: u64) -> Reply {
        let (reply, write) = protocol::transition(&self.state(key, now), operation, now);
        let Some(write) = write else { return reply };
        let expires_at = now.saturating_add(protocol::millis(write.lifetime));
        match write.state {
            State::Completed { fingerprint } => {
                self.open.by_key.remove(&key);
                self.completed.insert(Key::of(key), Completed::new(fingerprint, expires_at), now);
            }
            state => self.open.insert(key, Record { state, expires_at }, now),
        }
        reply
    }

    /// How many keys there are, whose time may have run out.
    pub(super) fn len(&self) -> usize {
        self.open.by_key.len() + self.completed.by_key.len()
    }

    pub(super) fn forget(&mut self, key: u128) {
        self.open.by_key.remove(&key);
        self.completed.by_key.remove(&Key::of(key));
    }

    /// Ends every lease now.
    pub(super) fn expire_claims(&mut self, now: u64) {
        for record in self.open.by_key.values_mut() {
            if let State::Claimed(claimed) = &mut record.state {
                claimed.lease_until = claimed.lease_until.min(now);
            }
        }
    }

    pub(super) fn park(&mut self, request: &ParkRequest, now: u64) -> ParkReply {
        let key = request.key.hash();
        let mut parked = self.parked.by_key.remove(&key).unwrap_or_default();
        let reply = parked.apply(request, now);
        if !parked.ids.is_empty() {
            self.parked.insert(key, parked, now);
        }
        reply
    }

    /// Which messages of a message key wait, in their order.
    pub(super) fn parked(&self, key: u128, now: u64) -> Vec<u128> {
        let parked = self.parked.by_key.get(&key).filter(|parked| parked.is_alive(now));
        parked.map(|parked| parked.ids.clone()).unwrap_or_default()
    }
}

impl Expires for Record {
    fn is_alive(&self, now: u64) -> bool {
        self.expires_at > now
    }
}

impl Expires for Parked {
    fn is_alive(&self, now: u64) -> bool {
        self.expires_at > now
    }
}

impl Completed {
    fn new(fingerprint: Option<u128>, expires_at: u64) -> Self {
        let known = u64::from(fingerprint.is_some());
        let expires_at = expires_at.min(u64::MAX >> 1) << 1 | known;
        Self { fingerprint: halves(fingerprint.unwrap_or(0)), expires_at }
    }

    fn fingerprint(&self) -> Option<u128> {
        let [high, low] = self.fingerprint;
        (self.expires_at & 1 == 1).then_some(u128::from(high) << 64 | u128::from(low))
    }
}

impl Expires for Completed {
    fn is_alive(&self, now: u64) -> bool {
        self.expires_at >> 1 > now
    }
}

fn halves(whole: u128) -> Halves {
    [(whole >> 64) as u64, whole as u64]
}

impl Key {
    fn of(hash: u128) -> Self {
        Self(halves(hash))
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [high, low] = self.0;
        state.write_u64(high);
        state.write_u64(low);
    }
}
