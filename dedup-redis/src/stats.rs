//! What the store has done so far.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one store since it was opened, over all clones of its handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands sent, repeated ones included.
    pub commands: u64,
    /// Pipelines sent and waited for. On a Cluster one pipeline is a set of commands that are out at the same time.
    pub round_trips: u64,
    /// Operations that were sent again, because their outcome was unknown or the server could not serve them.
    pub retries: u64,
    /// Connections opened after the first ones.
    pub reconnects: u64,
    /// Completions recorded a second time, because the server may have lost them.
    pub reasserted: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    commands: AtomicU64,
    round_trips: AtomicU64,
    retries: AtomicU64,
    reconnects: AtomicU64,
    reasserted: AtomicU64,
}

impl Counters {
    pub(crate) fn sent(&self, commands: usize) {
        self.commands.fetch_add(commands as u64, Relaxed);
        self.round_trips.fetch_add(1, Relaxed);
    }

    pub(crate) fn retried(&self, operations: usize) {
        self.retries.fetch_add(operations as u64, Relaxed);
    }

    pub(crate) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }

    pub(crate) fn reasserted(&self, completions: usize) {
        self.reasserted.fetch_add(completions as u64, Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        Stats {
            commands: self.commands.load(Relaxed),
            round_trips: self.round_trips.load(Relaxed),
            retries: self.retries.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            reasserted: self.reasserted.load(Relaxed),
        }
    }
}
