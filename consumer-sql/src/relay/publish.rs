//! A batch on its way to the broker: many in flight, one of each key.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    time::Duration,
};

use consumer_core::{Failure, PublishError, Publisher};
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::session::{Failed, Settled};
use crate::outbox::row::Row;

/// The longest error text in a row.
const MOST_ERROR: usize = 4_096;

/// How often, and after which waits, a row is tried that the broker refuses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) attempts: u32,
    pub(super) first_wait: Duration,
    pub(super) longest_wait: Duration,
}

impl Policy {
    fn wait(&self, failed: u32) -> Option<Duration> {
        let doubled = self.first_wait.saturating_mul(1 << failed.saturating_sub(1).min(30));
        (failed < self.attempts).then_some(doubled.min(self.longest_wait))
    }
}

/// What is known of a batch when it is over, or when it was waited for for long enough.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) settled: Settled,
    /// The broker is away, as it says. Its rows are as they were.
    pub(super) away: Option<PublishError>,
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
    loop {
        let done = tokio::select! {
            biased;
            done = flying.next() => done,
            () = &mut enough => return batch,
        };
        let Some((chain, result)) = done else { return batch };
        let chain: usize = chain;
        let Some(row) = chains[chain].pop_front() else { continue };
        match result {
            Ok(()) => {
                if row.attempts > 0
                    && let Some((destination, key)) = row.lane()
                {
                    batch.settled.released.push((destination.to_owned(), key.to_owned()));
                }
                batch.settled.published.push(row.id);
                // While the broker is away nothing new is begun; what is on its way is waited for.
                if batch.away.is_none() {
                    flying.extend(next(publisher, &mut chains, chain, policy, &mut batch));
                }
            }
            Err(error) if error.is_transient() => batch.away = batch.away.or(Some(error)),
            Err(error) => batch.settled.failed.push(failed(&row, Failure::permanent(error).cause(), policy)),
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
            batch.settled.failed.push(failed(row, error, Policy { attempts: 0, ..policy }));
            None
        }
    }
}

fn failed(row: &Row, mut error: String, policy: Policy) -> Failed {
    let attempts = row.attempts.saturating_add(1);
    error.truncate(error.floor_char_boundary(MOST_ERROR));
    // PostgreSQL's text has no NUL.
    let error = error.replace('\0', "\u{fffd}");
    Failed { id: row.id, attempts, error, wait: policy.wait(attempts) }
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
