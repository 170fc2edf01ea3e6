//! What a run has done.

use std::fmt;

use crate::{Outcome, SourceError};

/// What became of every delivery of a run.
///
/// `received == processed + duplicates + deferred + dead_lettered + discarded + returned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Deliveries taken from the source.
    pub received: u64,
    /// The stack returned [`Outcome::Processed`], whether or not the ack arrived.
    pub processed: u64,
    /// Duplicates, and deliveries that a later attempt had superseded.
    pub duplicates: u64,
    /// Calls of a handler after the first of its message.
    pub retried: u64,
    /// Handed to the broker for a later attempt.
    pub deferred: u64,
    /// Set aside.
    pub dead_lettered: u64,
    /// Given up by [`Consumer::discard_after`](super::Consumer::discard_after).
    pub discarded: u64,
    /// Handed back unsettled: shutdown, revoked partitions, lost connections.
    pub returned: u64,
    /// What was unsettled when the stop was asked for.
    pub in_flight_at_stop: u64,
}

impl Report {
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Processed => self.processed += 1,
            Outcome::Duplicate | Outcome::Superseded => self.duplicates += 1,
            Outcome::DeadLettered => self.dead_lettered += 1,
            Outcome::Deferred => self.deferred += 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "received {}, processed {}, duplicates {}, retried {}, deferred {}, dead-lettered {}, discarded {}, \
             returned {}, in flight at stop {}",
            self.received,
            self.processed,
            self.duplicates,
            self.retried,
            self.deferred,
            self.dead_lettered,
            self.discarded,
            self.returned,
            self.in_flight_at_stop
        )
    }
}

/// A run that ended because its source or its stack could not go on.
pub struct RunError {
    report: Report,
    source: SourceError,
}

impl RunError {
    pub(super) fn new(report: Report, source: SourceError) -> Self {
        Self { report, source }
    }

    /// What became of the deliveries until then.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunError").field("report", &self.report).field("source", &self.source).finish()
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the consumer could not go on")
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
