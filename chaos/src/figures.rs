//! What a run says at its end: one line of JSON, and a list of everything that was repeated or wrong.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
    time::Duration,
};

use serde_json::{Map, Value, json};

use crate::{
    history::{Cause, Effect, History},
    ledger::{Pair, Verdict},
    plan::Plan,
};

/// What is neither in the history nor in the verdict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) broker: String,
    pub(crate) store: String,
    /// Those that were gone through; fewer than planned after a failure.
    pub(crate) cycles: usize,
    pub(crate) copies: usize,
    pub(crate) longest_recovery: Duration,
    pub(crate) took: Duration,
    pub(crate) stuck: Vec<String>,
}

pub(crate) fn line(plan: &Plan, run: &Run, history: &History, verdict: &Verdict) -> Value {
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    for cycle in &plan.cycles[..run.cycles] {
        *faults.entry(cycle.fault.name()).or_default() += 1;
    }
    let explained: Map<String, Value> = Cause::ALL
        .into_iter()
        .map(|cause| (cause.name().to_owned(), verdict.explained_by(cause).into()))
        .collect();
    let set_aside: HashSet<&str> = history.letters.iter().map(|letter| &*letter.id).collect();
    json!({
        "broker": run.broker,
        "store": run.store,
        "ordering": if plan.ordered { "key" } else { "none" },
        "seed": plan.seed,
        "cycles": run.cycles,
        "faults": faults,
        "published": history.published.len(),
        "copies": run.copies,
        "effects": history.effects.len(),
        "dead_letters": history.letters.len(),
        "dead_letters_repeated": history.letters.len() - set_aside.len(),
        "lost": verdict.lost.len(),
        "doubled_explained": explained,
        "doubled_unexplained": verdict.unexplained.len(),
        "order_violations": verdict.disorder.len(),
        "set_aside_wrongly": verdict.wrongly_set_aside.len(),
        "foreign": verdict.foreign.len(),
        "stuck": run.stuck.len(),
        "longest_recovery": tenths(run.longest_recovery),
        "seconds": tenths(run.took),
    })
}

/// Each repeated effect with its reason, and each violation.
pub(crate) fn list(run: &Run, verdict: &Verdict) -> String {
    let mut list = String::new();
    // Writing to a string does not fail.
    for explained in &verdict.explained {
        let by = &explained.by;
        let _ = writeln!(
            list,
            "explained: {}: consumer #{} {} from {:.2} s to {:.2} s",
            pair(&explained.pair),
            by.consumer,
            by.cause.name(),
            by.from.as_secs_f64(),
            by.until.as_secs_f64()
        );
    }
    list + &violations(run, verdict)
}

pub(crate) fn violations(run: &Run, verdict: &Verdict) -> String {
    let mut list = String::new();
    let mut add = |what: &str, which: &str| list.push_str(&format!("{what}: {which}\n"));
    verdict.lost.iter().for_each(|id| add("LOST", id));
    verdict.unexplained.iter().for_each(|double| add("UNEXPLAINED", &pair(double)));
    verdict.disorder.iter().for_each(|swapped| add("OUT OF ORDER", &pair(swapped)));
    verdict.wrongly_set_aside.iter().for_each(|letter| add("WRONGLY SET ASIDE", letter));
    verdict.foreign.iter().for_each(|id| add("FOREIGN", id));
    run.stuck.iter().for_each(|what| add("STUCK", what));
    list
}

fn pair(pair: &Pair) -> String {
    format!("{} and {}", effect(&pair.first), effect(&pair.second))
}

fn effect(effect: &Effect) -> String {
    let Effect { id, consumer, epoch, seen } = effect;
    format!("{id} by consumer #{consumer}, epoch {epoch}, at {:.2} s", seen.as_secs_f64())
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}
