//! A map that forgets what has expired.

use std::{collections::HashMap, hash::Hash};

const SWEEP_FROM: usize = 1024;

/// A map that is swept once for each doubling: that costs each key a constant share, and at most half of the map is
/// expired.
pub(super) struct Swept<K, V> {
    pub(super) by_key: HashMap<K, V, foldhash::fast::RandomState>,
    sweep_at: usize,
}

pub(super) trait Expires {
    fn is_alive(&self, now: u64) -> bool;
}

impl<K: Eq + Hash, V: Expires> Swept<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V, now: u64) {
        if self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, value| value.is_alive(now));
            self.sweep_at = (self.by_key.len() * 2).max(SWEEP_FROM);
        }
        self.by_key.insert(key, value);
    }
}

impl<K, V> Default for Swept<K, V> {
    fn default() -> Self {
        Self { by_key: HashMap::default(), sweep_at: SWEEP_FROM }
    }
}
