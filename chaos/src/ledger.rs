//! The judge: what of a history the guarantee does not allow. Without I/O and without a clock.
//!
//! Epochs put the effects of an id into their order. Each but the last needs a reason why its process could not record it:
//! the process was killed, or stopped, or cut off from the store, and the effect lies where that can be the reason.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use crate::history::{Cause, Effect, History, Kind, Trouble};

/// What the consumers were started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) lease: Duration,
    /// Messages a process holds at once: no trouble can repeat more of its effects.
    pub(crate) in_flight: usize,
    /// By how much later than it happened an effect may be seen.
    pub(crate) slack: Duration,
}

/// What is wrong, and what is repeated with a reason.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    /// Ids that were confirmed, and have neither effect nor dead letter.
    pub(crate) lost: Vec<String>,
    pub(crate) explained: Vec<Explained>,
    /// Repeated without a reason.
    pub(crate) unexplained: Vec<Pair>,
    /// First effects of one key, by one process, in another order than they were published.
    pub(crate) disorder: Vec<Pair>,
    /// Dead letters of messages that should have been mailed.
    pub(crate) wrongly_set_aside: Vec<String>,
    /// Effects of messages that nobody has published, or that cannot be mailed.
    pub(crate) foreign: Vec<String>,
}

/// Two effects; for a repeated one the earlier epoch comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) first: Effect,
    pub(crate) second: Effect,
}

/// A repeated effect and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explained {
    pub(crate) pair: Pair,
    pub(crate) by: Trouble,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.unexplained.is_empty()
            && self.disorder.is_empty()
            && self.wrongly_set_aside.is_empty()
            && self.foreign.is_empty()
    }

    pub(crate) fn explained_by(&self, cause: Cause) -> usize {
        self.explained.iter().filter(|explained| explained.by.cause == cause).count()
    }
}

pub(crate) fn judge(history: &History, limits: Limits) -> Verdict {
    let mut verdict = Verdict::default();
    let by_id = by_id(&history.effects);
    settled(history, &by_id, &mut verdict);
    repeated(history, limits, &by_id, &mut verdict);
    if history.ordered {
        in_order(history, &by_id, &mut verdict);
    }
    verdict
}

/// In the order of their epochs.
fn by_id(effects: &[Effect]) -> BTreeMap<&str, Vec<&Effect>> {
    let mut by_id: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
    for effect in effects {
        by_id.entry(&effect.id).or_default().push(effect);
    }
    for effects in by_id.values_mut() {
        effects.sort_by_key(|effect| (effect.epoch, effect.seen));
    }
    by_id
}

fn settled(history: &History, by_id: &BTreeMap<&str, Vec<&Effect>>, verdict: &mut Verdict) {
    let letters: HashSet<&str> = history.letters.iter().map(|letter| &*letter.id).collect();
    let mailable: HashMap<&str, bool> = history
        .published
        .iter()
        .map(|published| (&*published.id, published.kind != Kind::Bouncing))
        .collect();
    for published in history.published.iter().filter(|published| published.confirmed.is_some()) {
        if !by_id.contains_key(&*published.id) && !letters.contains(&*published.id) {
            verdict.lost.push(published.id.clone());
        }
    }
    let foreign = by_id.keys().filter(|id| mailable.get(**id) != Some(&true));
    verdict.foreign.extend(foreign.map(|id| (*id).to_owned()));
    for letter in &history.letters {
        // A message that has taken a process with it, alone, so often as it has attempts.
        let died = letter.error.starts_with("process died");
        if mailable.get(&*letter.id) != Some(&false) && !died {
            verdict.wrongly_set_aside.push(format!("{}: {}, {}", letter.id, letter.reason, letter.error));
        }
    }
}

fn repeated(history: &History, limits: Limits, by_id: &BTreeMap<&str, Vec<&Effect>>, verdict: &mut Verdict) {
    let mut used = vec![0; history.troubles.len()];
    for effects in by_id.values() {
        for pair in effects.windows(2) {
            let pair = Pair { first: pair[0].clone(), second: pair[1].clone() };
            let fits = |nth: &usize| {
                used[*nth] < limits.in_flight && explains(&history.troubles[*nth], &pair, limits)
            };
            match (0..history.troubles.len()).find(fits) {
                Some(nth) => {
                    used[nth] += 1;
                    verdict.explained.push(Explained { pair, by: history.troubles[nth].clone() });
                }
                None => verdict.unexplained.push(pair),
            }
        }
    }
}

/// Whether this is why the first of the two was not recorded when the second was begun.
fn explains(trouble: &Trouble, pair: &Pair, limits: Limits) -> bool {
    let Pair { first, second } = pair;
    // A claim is prolonged when half of it is used: at least the other half is left of it when the trouble begins, and
    // so long nobody else gets the key.
    let half = limits.lease / 2;
    let long_enough = trouble.cause == Cause::Killed || trouble.until.saturating_sub(trouble.from) >= half;
    // What was in flight: begun before the end of the trouble, and not recorded before it began.
    let in_flight = first.seen + limits.lease >= trouble.from && first.seen <= trouble.until + limits.slack;
    let after_the_claim = second.seen >= trouble.from + half;
    trouble.consumer == first.consumer
        // One claim never has two effects, whatever happens.
        && first.epoch < second.epoch
        && long_enough
        && in_flight
        && after_the_claim
}

/// The promise is for one assignment; a process is at least one. An effect that another process had before, out of reach of
/// this one, is none of its first.
fn in_order(history: &History, by_id: &BTreeMap<&str, Vec<&Effect>>, verdict: &mut Verdict) {
    let place: HashMap<&str, (usize, usize)> = history
        .published
        .iter()
        .enumerate()
        .map(|(nth, published)| (&*published.id, (published.key, nth)))
        .collect();
    let mut last: HashMap<(usize, usize), (usize, &Effect)> = HashMap::new();
    for effect in &history.effects {
        let Some(&(key, nth)) = place.get(&*effect.id) else { continue };
        let is_first = by_id.get(&*effect.id).is_some_and(|all| all[0] == effect);
        if !is_first {
            continue;
        }
        match last.get(&(effect.consumer, key)) {
            Some((before, earlier)) if *before > nth => {
                verdict.disorder.push(Pair { first: (*earlier).clone(), second: effect.clone() });
            }
            _ => drop(last.insert((effect.consumer, key), (nth, effect))),
        }
    }
}

#[cfg(test)]
mod tests;
