//! One assignment of a partition to one member: what was delivered, what is settled, how far it may be committed.

use std::collections::{BTreeSet, VecDeque};

use tokio::time::Instant;

use crate::Settlement;

/// What a settlement changes outside its assignment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// A tag that names nothing (any more).
    Ignored,
    /// To be delivered again.
    Again,
    /// Done, but something before it is not.
    Kept,
    /// Everything before this offset is done.
    Commit(u64),
}

pub(super) struct Assignment {
    pub(super) member: u64,
    pub(super) group: usize,
    pub(super) topic: usize,
    pub(super) partition: usize,
    /// The next offset to read.
    pub(super) position: u64,
    /// Set once its member was told to give it up: when it is taken without being released.
    pub(super) closing: Option<Instant>,
    /// Delivered offsets from the watermark on, in their order, and whether they are done. Offsets that were never
    /// delivered (gaps) do not occur, so that they hold nothing up.
    delivered: VecDeque<(u64, bool)>,
    /// Offsets to deliver again, lowest first.
    again: BTreeSet<u64>,
    /// Offsets to deliver a second time, whatever becomes of the first.
    copies: VecDeque<u64>,
    /// The offset of each outstanding delivery, from `first_seq` on.
    outstanding: VecDeque<Option<u64>>,
    first_seq: u64,
}

impl Assignment {
    pub(super) fn new(member: u64, group: usize, topic: usize, partition: usize, position: u64) -> Self {
        Self {
            member,
            group,
            topic,
            partition,
            position,
            closing: None,
            delivered: VecDeque::new(),
            again: BTreeSet::new(),
            copies: VecDeque::new(),
            outstanding: VecDeque::new(),
            first_seq: 0,
        }
    }

    /// The next offset that has to be delivered again.
    pub(super) fn take_again(&mut self) -> Option<u64> {
        self.again.pop_first().or_else(|| self.copies.pop_front())
    }

    pub(super) fn deliver_twice(&mut self, offset: u64) {
        self.copies.push_back(offset);
    }

    pub(super) fn waiting_again(&self) -> usize {
        self.again.len() + self.copies.len()
    }

    /// Puts down a delivery; answers with its number.
    pub(super) fn deliver(&mut self, offset: u64) -> u64 {
        if offset >= self.position {
            self.delivered.push_back((offset, false));
            self.position = offset + 1;
        }
        self.outstanding.push_back(Some(offset));
        self.first_seq + self.outstanding.len() as u64 - 1
    }

    pub(super) fn settle(&mut self, seq: u64, how: Settlement) -> Settled {
        let index = seq.checked_sub(self.first_seq).and_then(|index| usize::try_from(index).ok());
        let slot = index.and_then(|index| self.outstanding.get_mut(index));
        let Some(offset) = slot.and_then(Option::take) else { return Settled::Ignored };
        while let Some(None) = self.outstanding.front() {
            self.outstanding.pop_front();
            self.first_seq += 1;
        }
        // A duplicate of an offset that is committed already is not among them any more.
        let Ok(index) = self.delivered.binary_search_by_key(&offset, |(offset, _)| *offset) else {
            return Settled::Kept;
        };
        if how == Settlement::Nack {
            if self.delivered[index].1 {
                return Settled::Kept;
            }
            self.again.insert(offset);
            return Settled::Again;
        }
        self.delivered[index].1 = true;
        self.again.remove(&offset);
        let mut commit = None;
        while let Some((offset, true)) = self.delivered.front() {
            commit = Some(offset + 1);
            self.delivered.pop_front();
        }
        commit.map_or(Settled::Kept, Settled::Commit)
    }
}
