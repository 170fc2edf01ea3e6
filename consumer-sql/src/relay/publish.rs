//! A batch on its way to the broker: many in flight, one of each key.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    time::Duration,
};

use consumer_core::{Failure, PublishError, Publisher};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

use super::session::{Failed, Settled};
use crate::outbox::row::Row;

/// How long a row is set aside whose broker is away, so that those of other destinations come to their turn: at first, and
/// when that was not enough.
const AWAY: Duration = Duration::from_secs(5);
const STILL_AWAY: Duration = Duration::from_secs(60);
/// A publisher that has not answered by then does not answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest error text in a row.
const MOST_ERROR: usize = 4_096;

/// How often, and after which waits, a row is tried that the broker refuses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) attempts: u32,
    pub(super) first_wait: Duration,
    pub(super) longest_wait: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let (first_wait, longest_wait) = (Duration::from_secs(1), Duration::from_secs(300));
        Self { attempts: 10, first_wait, longest_wait }
    }
}

impl Policy {
    /// Before a row is tried again whose broker was away.
    fn short_wait(&self, again: bool) -> Duration {
        self.longest_wait.min(if again { STILL_AWAY } else { AWAY })
    }

    fn wait(&self, failed: u32) -> Option<Duration> {
        let doubled = self.first_wait.saturating_mul(1 << failed.saturating_sub(1).min(30));
        (failed < self.attempts).then_some(doubled.min(self.longest_wait))
    }
}

/// What is known of a batch when it is over, or when it was waited for for long enough.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) settled: Settled,
    /// What the broker, or one of its queues, says that is away. Those rows are set aside for a moment.
    pub(super) away: Option<String>,
}

/// Rows of one destination and key, behind each other: the next is published when the one before is confirmed. With more
/// than one on its way, a refused one would be passed by those behind it.
type Chain = VecDeque<Row>;

/// Publishes rows in their order, until all are dealt with or `enough` is ready.
pub(super) async fn publish<P: Publisher>(
    publisher: &P,
    rows: Vec<Row>,
    policy: Policy,
    enough: impl Future<Output = ()>,
) -> Batch {
    let mut chains = chains(rows);
    let mut batch = Batch::default();
    let mut flying = FuturesUnordered::new();
    for chain in 0..chains.len() {
        flying.extend(next(publisher, &mut chains, chain, policy, &mut batch));
    }
    tokio::pin!(enough);
    let patience = sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        let done = tokio::select! {
            biased;
            done = flying.next() => done,
            () = &mut enough => return batch,
            () = &mut patience => {
                let why = format!("the broker has not answered within {PATIENCE:?}");
                for row in chains.iter().filter_map(VecDeque::front) {
                    batch.settled.failed.push(set_aside(row, why.clone(), policy));
                }
                batch.away = Some(why);
                return batch;
            }
        };
        let Some((chain, result)) = done else { return batch };
        let chain: usize = chain;
        let Some(row) = chains[chain].pop_front() else { continue };
        match result {
            Ok(()) => {
                if row.had_failed
                    && let Some((destination, key)) = row.lane()
                {
                    batch.settled.released.push((destination.to_owned(), key.to_owned()));
                }
                batch.settled.published.push(row.id);
                flying.extend(next(publisher, &mut chains, chain, policy, &mut batch));
            }
            Err(error) => {
                let is_away = error.is_transient();
                let why = Failure::permanent(error).cause();
                // The rest of the chain is held behind it, and taken when it is through.
                chains[chain].clear();
                if is_away {
                    batch.settled.failed.push(set_aside(&row, why.clone(), policy));
                    batch.away = batch.away.or(Some(why));
                } else {
                    batch.settled.failed.push(refused(&row, why, policy));
                }
            }
        }
    }
}

/// Begins with the first row of a chain. A row that cannot be read ends it.
fn next<P: Publisher>(
    publisher: &P,
    chains: &mut [Chain],
    chain: usize,
    policy: Policy,
    batch: &mut Batch,
) -> Option<impl Future<Output = (usize, Result<(), PublishError>)> + use<P>> {
    let row = chains[chain].front()?;
    match row.outgoing() {
        Ok(outgoing) => {
            let published = publisher.publish(outgoing);
            Some(async move { (chain, published.await) })
        }
        // No later attempt would find another row.
        Err(error) => {
            batch.settled.failed.push(refused(row, error, Policy { attempts: 0, ..policy }));
            chains[chain].clear();
            None
        }
    }
}

fn refused(row: &Row, error: String, policy: Policy) -> Failed {
    let attempts = row.attempts.saturating_add(1);
    Failed { id: row.id, attempts, is_refused: true, error: fitting(error), wait: policy.wait(attempts) }
}

/// No attempt: the same row may be taken when the broker is back.
fn set_aside(row: &Row, error: String, policy: Policy) -> Failed {
    let wait = Some(policy.short_wait(row.had_failed));
    Failed { id: row.id, attempts: row.attempts, is_refused: false, error: fitting(error), wait }
}

fn fitting(mut error: String) -> String {
    error.truncate(error.floor_char_boundary(MOST_ERROR));
    // PostgreSQL's text has no NUL.
    error.replace('\0', "\u{fffd}")
}

fn chains(rows: Vec<Row>) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::with_capacity(rows.len());
    let mut of = HashMap::new();
    for row in rows {
        let chain = match row.lane() {
            Some((destination, key)) => {
                *of.entry((destination.to_owned(), key.to_owned())).or_insert(chains.len())
            }
            None => chains.len(),
        };
        match chains.get_mut(chain) {
            Some(known) => known.push_back(row),
            None => chains.push(Chain::from([row])),
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_waits_are_those_of_the_docs() {
        let waits: Vec<_> = (1..=10).map_while(|failed| Policy::default().wait(failed)).collect();
        assert_eq!((waits.len(), waits.iter().sum()), (9, Duration::from_secs(8 * 60 + 31)));
        let long = Policy { attempts: 20, ..Policy::default() };
        assert_eq!((long.wait(12), long.wait(20)), (Some(Duration::from_secs(300)), None));
    }
}
