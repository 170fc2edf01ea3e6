//! What there is: deliveries, the store, what is on its way, and a ledger that only the model sees.

use super::record::{Op, Owner, Record, What};

/// Where a delivery stands. What a worker does by itself and nobody sees is one step with what it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Presented, with no claim that it knows of: it asks the store, at first or once more.
    Waiting,
    /// Claimed, and waits for its place in the gate.
    Gate,
    /// Its handler runs.
    Running,
    /// Its handler failed; a dead letter or a delayed copy is on its way to the broker.
    Publishing(End),
    /// What became of the claim is on its way to the store.
    Recording(End),
    /// The runtime has acked it.
    Acked(Ack),
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// The handler succeeded.
    Completed,
    /// The dead letter is confirmed.
    DeadLettered,
    /// The delayed copy is confirmed.
    Deferred,
    /// The handler failed; the message is presented again.
    Failed,
    /// Shutdown or rebalance.
    Returned,
}

/// What an ack stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ack {
    /// The effect has happened.
    Effect,
    /// A dead letter exists.
    DeadLetter,
    /// A delayed copy exists.
    Copy,
}

/// One delivery of a message to a process, over as many presentations as it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Delivery {
    /// Which process has it.
    pub process: u8,
    /// Its idempotency key.
    pub key: u8,
    /// The attempt it asks for.
    pub attempt: u8,
    /// How often it was redriven.
    pub redrive: u8,
    /// Where it stands.
    pub phase: Phase,
    /// Ticks until the client's own deadline.
    pub left: u8,
    /// Failed calls that the claim knows of.
    pub attempts: u8,
    /// The highest redrive count that the claim knows of.
    pub known: u8,
    /// The claim has to run alone.
    pub suspect: bool,
    /// The store was told that it runs alone.
    pub alone: bool,
    /// Handed back while its end is recorded: presented again instead of acked.
    pub back: bool,
    /// A fault took its claim away: a stall beyond the lease, a jump of the store's clock, lost data.
    pub bereft: bool,
    /// The network holds its request up.
    pub slow: bool,
    /// What a store that reads and writes in two steps has read.
    pub read: Option<Record>,
}

impl Delivery {
    /// Delivered, not yet presented.
    pub fn new(process: u8, key: u8, attempt: u8, redrive: u8) -> Self {
        Self {
            process,
            key,
            attempt,
            redrive,
            phase: Phase::Waiting,
            left: 0,
            attempts: 0,
            known: 0,
            suspect: false,
            alone: false,
            back: false,
            bereft: false,
            slow: false,
            read: None,
        }
    }

    /// The same, with nothing known of a claim.
    pub fn anew(&self, phase: Phase) -> Self {
        Self { phase, ..Self::new(self.process, self.key, self.attempt, self.redrive) }
    }

    /// How it runs, as the store is told: 0 normal, 1 suspect, 2 alone.
    pub fn mode(&self) -> u8 {
        if self.alone { 2 } else { u8::from(self.suspect) }
    }

    /// Whether its handler may run until the client's deadline.
    pub fn has_deadline(&self) -> bool {
        matches!(self.phase, Phase::Gate | Phase::Running)
    }

    /// Whether it stands on something that happened and that the store does not know yet.
    pub fn is_unrecorded(&self) -> bool {
        matches!(self.phase, Phase::Recording(End::Completed | End::DeadLettered | End::Deferred))
    }
}

/// A key: its record, and the ledger, which only the model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What the store knows.
    pub record: Record,
    /// How far the record's epoch lies below the highest that was granted.
    pub behind: u8,
    /// How often the effect has happened.
    pub effects: u8,
    /// How often the handler has failed.
    pub failures: u8,
    /// How often a claim that ran alone ended with its lease.
    pub deaths: u8,
    /// Dead letters, by the redrive count of the message that was set aside.
    pub letters: [u8; 3],
    /// Delayed copies.
    pub copies: u8,
    /// A fault hit between an effect, or a confirm, and its record: it may happen once more.
    pub excused: bool,
    /// The store lost a write of this key.
    pub lost: bool,
}

/// A dead letter that the operator has not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Letter {
    /// Of which key.
    pub key: u8,
    /// How often the message in it was redriven.
    pub redrive: u8,
    /// The operator knows that the redriven message is confirmed.
    pub published: bool,
}

/// An operation whose sender waits for it no more, or has sent it once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Late {
    /// On which key.
    pub key: u8,
    /// What it asks.
    pub op: Op,
}

/// What the store's last write has overwritten: its replica does not know that write yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unreplicated {
    /// Of which key.
    pub key: u8,
    /// The record before.
    pub record: Record,
    /// [`Key::behind`] when that record comes back.
    pub behind: u8,
}

/// A rule that one step broke; what is wrong in a state is seen in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// A completed key was written over, or is kept too shortly.
    Completed,
    /// An unexpired claim was given away.
    OneClaim,
    /// A release or a renewal of a claim that its sender does not own changed something.
    Foreign,
    /// An epoch was not above all before it.
    Epoch,
}

/// One state of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct World {
    /// All deliveries; those of one claim are known by their place here.
    pub deliveries: Vec<Delivery>,
    /// The store, and the ledger.
    pub keys: Vec<Key>,
    /// What a failover would bring back.
    pub unreplicated: Option<Unreplicated>,
    /// Operations on their own.
    pub late: Vec<Late>,
    /// The dead letters.
    pub letters: Vec<Letter>,
    /// Processes that do nothing for now.
    pub stalled: [bool; 2],
    /// Processes whose wall clock has jumped ahead by a lease.
    pub ahead: [bool; 2],
    /// How many faults may still happen.
    pub faults: u8,
    /// What was broken.
    pub broken: Option<Rule>,
}

/// Claims of a living process that none of its deliveries has any more are numbered from here.
const RETIRED: u8 = 100;

impl World {
    /// With these deliveries, and a store that knows nothing.
    pub fn new(deliveries: Vec<Delivery>, faults: u8) -> Self {
        let keys = deliveries.iter().map(|delivery| delivery.key + 1).max().unwrap_or(0);
        let key = Key {
            record: Record::Absent,
            behind: 0,
            effects: 0,
            failures: 0,
            deaths: 0,
            letters: [0; 3],
            copies: 0,
            excused: false,
            lost: false,
        };
        Self {
            deliveries,
            keys: vec![key; keys.into()],
            unreplicated: None,
            late: Vec::new(),
            letters: Vec::new(),
            stalled: [false; 2],
            ahead: [false; 2],
            faults,
            broken: None,
        }
    }

    /// The nonce of a delivery's claim: a delivery has one at a time, so its place tells.
    pub fn owner(&self, index: usize) -> Owner {
        let claim = u8::try_from(index).unwrap_or(u8::MAX);
        Owner { process: self.deliveries[index].process, claim }
    }

    /// The operation that a delivery has under way, or would send next.
    pub fn op(&self, index: usize) -> Option<Op> {
        let delivery = &self.deliveries[index];
        let attempts = delivery.attempts;
        let what = match delivery.phase {
            Phase::Waiting => What::Claim { attempt: delivery.attempt, redrive: delivery.redrive },
            Phase::Gate | Phase::Running | Phase::Publishing(_) => {
                What::Renew { attempts, mode: delivery.mode() }
            }
            Phase::Recording(End::Completed) => What::Complete,
            Phase::Recording(End::DeadLettered) => What::DeadLetter,
            Phase::Recording(End::Deferred) => What::Defer { attempt: attempts + 1 },
            Phase::Recording(End::Failed) => What::Fail { attempts },
            Phase::Recording(End::Returned) => What::Return { attempts },
            Phase::Acked(_) => return None,
        };
        Some(Op { owner: self.owner(index), what })
    }

    /// The key of a delivery.
    pub fn key_of(&mut self, index: usize) -> &mut Key {
        &mut self.keys[usize::from(self.deliveries[index].key)]
    }

    /// Whether the delivery holds the unexpired claim of its key.
    pub fn holds(&self, index: usize) -> bool {
        let key = &self.keys[usize::from(self.deliveries[index].key)];
        key.record.held_by() == Some(self.owner(index))
    }

    /// Nothing is left to do.
    pub fn is_settled(&self) -> bool {
        self.letters.is_empty() && self.deliveries.iter().all(|d| matches!(d.phase, Phase::Acked(_)))
    }

    /// The owners in all that refers to a claim.
    pub fn owners(&mut self) -> impl Iterator<Item = &mut Owner> {
        let keys = self.keys.iter_mut().filter_map(|key| claimed(&mut key.record));
        let before = self.unreplicated.iter_mut().filter_map(|before| claimed(&mut before.record));
        let read = self.deliveries.iter_mut().filter_map(|d| d.read.as_mut()).filter_map(claimed);
        keys.chain(before).chain(self.late.iter_mut().map(|late| &mut late.op.owner)).chain(read)
    }

    /// The delivery takes another nonce the next time it asks: what still has this one has that of nobody.
    pub fn retire(&mut self, index: usize) {
        let old = self.owner(index);
        let retired = Owner { claim: RETIRED + old.claim, ..old };
        self.owners().filter(|owner| **owner == old).for_each(|owner| *owner = retired);
        self.renumber();
    }

    /// What a process had is now of one that is dead.
    pub fn bury(&mut self, process: u8) {
        self.owners().filter(|owner| owner.process == process).for_each(|owner| owner.process = RETIRED);
        self.renumber();
    }

    /// Gives nonces that nobody uses any more the numbers in which they are found: only whether they are equal matters.
    pub fn renumber(&mut self) {
        let mut known: Vec<(Owner, Owner)> = Vec::new();
        for owner in self.owners() {
            if owner.process < 2 && owner.claim < RETIRED {
                continue;
            }
            let new = known.iter().find(|(old, _)| old == owner).map(|(_, new)| *new).unwrap_or_else(|| {
                let count = u8::try_from(known.len()).unwrap_or(u8::MAX);
                let process = match owner.process {
                    living @ 0..2 => living,
                    dead => known
                        .iter()
                        .find(|(old, _)| old.process == dead)
                        .map_or(2 + count, |(_, new)| new.process),
                };
                let claim = if process < 2 { RETIRED * 2 + count } else { count };
                let new = Owner { process, claim };
                known.push((*owner, new));
                new
            });
            *owner = new;
        }
    }
}

fn claimed(record: &mut Record) -> Option<&mut Owner> {
    match record {
        Record::Claimed { owner, .. } => Some(owner),
        _ => None,
    }
}
