//! Which deliveries run one after another.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
};

use foldhash::fast::RandomState;

use crate::Delivery;

/// Which deliveries run one after another. The next one starts when the one before is settled, whatever retries
/// that takes; so with an order, one message that keeps failing holds up those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ordering {
    /// None: a message never waits for another one.
    #[default]
    None,
    /// Those of one partition (or one queue), in source order.
    Partition,
    /// Those of one message key within a partition (or queue), in source order. Messages without a key have no order.
    Key,
}

/// The deliveries that wait for the one before them. A lane exists while one of its deliveries runs.
pub(super) struct Queues {
    ordering: Ordering,
    hasher: RandomState,
    waiting: HashMap<u64, VecDeque<Delivery>, RandomState>,
    len: usize,
}

impl Queues {
    pub(super) fn new(ordering: Ordering) -> Self {
        Self { ordering, hasher: RandomState::default(), waiting: HashMap::default(), len: 0 }
    }

    /// How many deliveries wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn lane_of(&self, delivery: &Delivery) -> Option<u64> {
        match self.ordering {
            Ordering::None => None,
            Ordering::Partition => Some(delivery.tag.scope),
            Ordering::Key => {
                delivery.message.key().map(|key| self.hasher.hash_one((delivery.tag.scope, &key[..])))
            }
        }
    }

    /// Gives the delivery back if it may start now; else keeps it.
    pub(super) fn admit(&mut self, lane: u64, delivery: Delivery) -> Option<Delivery> {
        match self.waiting.get_mut(&lane) {
            None => {
                self.waiting.insert(lane, VecDeque::new());
                Some(delivery)
            }
            Some(queue) => {
                queue.push_back(delivery);
                self.len += 1;
                None
            }
        }
    }

    /// The delivery that runs on this lane is settled: the next one, if there is one.
    pub(super) fn next(&mut self, lane: u64) -> Option<Delivery> {
        let next = self.waiting.get_mut(&lane)?.pop_front();
        match next {
            Some(_) => self.len -= 1,
            None => drop(self.waiting.remove(&lane)),
        }
        next
    }

    /// Takes out what waits and belongs to a scope for which `ends` holds.
    pub(super) fn take(&mut self, ends: impl Fn(u64) -> bool) -> Vec<Delivery> {
        let mut taken = Vec::new();
        for queue in self.waiting.values_mut() {
            let (gone, kept) = std::mem::take(queue).into_iter().partition(|d| ends(d.tag.scope));
            *queue = kept;
            let gone: VecDeque<Delivery> = gone;
            taken.extend(gone);
        }
        self.len -= taken.len();
        taken
    }
}
