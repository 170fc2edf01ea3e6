//! What was seen of a run from outside: plain data, from which the ledger judges.
//!
//! Times are those of the harness' own monotonic clock since the run began; no clock of a consumer, a broker or a store is
//! compared with another one.

use std::time::Duration;

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// Whether the order of keys was asked for.
    pub(crate) ordered: bool,
    /// In the order of publishing within each key.
    pub(crate) published: Vec<Published>,
    /// Those of one consumer in the order of its log.
    pub(crate) effects: Vec<Effect>,
    pub(crate) letters: Vec<Letter>,
    /// What can explain that an effect is repeated.
    pub(crate) troubles: Vec<Trouble>,
    /// By their numbers.
    pub(crate) consumers: Vec<Life>,
    /// For the picture.
    pub(crate) marks: Vec<Mark>,
}

/// A message of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) id: String,
    pub(crate) key: usize,
    pub(crate) kind: Kind,
    /// When the broker has confirmed it first; then it must not be lost.
    pub(crate) confirmed: Option<Duration>,
}

/// What the mail provider does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    /// Fails twice.
    Flaky,
    /// Fails for good: it has to become a dead letter.
    Bouncing,
}

/// A line of a mail log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) id: String,
    /// The number of the process; each has its own.
    pub(crate) consumer: usize,
    /// Given by the store; only grows for an id.
    pub(crate) epoch: u64,
    /// At the latest then.
    pub(crate) seen: Duration,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) reason: String,
    pub(crate) error: String,
}

/// A time in which a consumer could not record what it had done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) cause: Cause,
    pub(crate) consumer: usize,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

/// The clauses of the stated guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cause {
    /// The process died between the effect and its record.
    Killed,
    /// The process was stopped for longer than half of its lease.
    Stopped,
    /// The store was away, or this process cut off from it, for longer than half of a lease.
    StoreAway,
}

impl Cause {
    pub(crate) const ALL: [Self; 3] = [Self::Killed, Self::Stopped, Self::StoreAway];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::StoreAway => "store_away",
        }
    }
}

/// The life of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) slot: usize,
    pub(crate) from: Duration,
    pub(crate) until: Option<Duration>,
}

/// A fault as it is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) lane: Lane,
    pub(crate) what: String,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

/// A line of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Consumer(usize),
    Broker,
    Store,
}
