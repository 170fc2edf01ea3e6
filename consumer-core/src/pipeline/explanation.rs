//! From facts to sentences.

use std::{fmt, time::Duration};

use humantime::format_duration;

use super::{DedupFacts, Facts, InboxFacts, RetryFacts};

/// What a dedup layer guarantees, no more and no less.
const DEDUP: &str = "at-least-once; each key's handler completes once unless a process dies between the side effect \
    and `complete`, or the store is away between the two for longer than what is left of the lease, a handler outlives its lease, an \
    attempt that failed or timed out had its effect all the same, the store loses state, or a duplicate comes after \
    the retention.";

/// What an inbox guarantees, no more and no less.
const INBOX: &str = "effects inside the transaction happen exactly once per (consumer, key) within the retention; calls \
    to other systems are at-least-once.";

/// What a stack guarantees and what it does not, in plain English.
///
/// `Display` gives the whole of it, for a start-up log or a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    guarantees: Vec<String>,
    limits: Vec<String>,
    missing: Vec<String>,
}

impl Explanation {
    /// Says what these facts amount to.
    pub fn of(facts: &Facts) -> Self {
        Self { guarantees: guarantees(facts), limits: limits(facts), missing: missing(facts) }
    }

    /// What the stack guarantees, a sentence each.
    pub fn guarantees(&self) -> &[String] {
        &self.guarantees
    }

    /// What the layers that are there do not guarantee.
    pub fn limits(&self) -> &[String] {
        &self.limits
    }

    /// Writes it to the log: what is guaranteed as one line of level info, what is missing as a warning each. For the
    /// start of a service.
    pub fn log(&self) {
        tracing::info!(guarantees = %self.guarantees.join(" "), limits = %self.limits.join(" "), "the stack");
        for gap in &self.missing {
            tracing::warn!(gap, "something is missing in the stack");
        }
    }

    /// Layers that are not there, and settings that do not fit together, with what follows from it.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("This stack guarantees:", &self.guarantees),
            ("It does not guarantee:", &self.limits),
            ("Missing:", &self.missing),
        ];
        let mut first = true;
        for (title, sentences) in parts.iter().filter(|(_, sentences)| !sentences.is_empty()) {
            if !first {
                f.write_str("\n")?;
            }
            first = false;
            f.write_str(title)?;
            for sentence in *sentences {
                write!(f, "\n  - {sentence}")?;
            }
        }
        Ok(())
    }
}

fn guarantees(facts: &Facts) -> Vec<String> {
    let mut said = Vec::new();
    let mut acked = vec!["the handler succeeded"];
    if facts.dedup.is_some() || facts.inbox.is_some() {
        acked.push("its effect was known to have happened");
    }
    if facts.dead_letter.is_some() {
        acked.push("the broker confirmed its dead letter");
    }
    if facts.delayed_retry.is_some() {
        acked.push("the broker confirmed a copy that comes later");
    }
    said.push(format!("At-least-once: a message is acknowledged only after {}.", acked.join(", or ")));
    if let Some(dedup) = &facts.dedup {
        said.extend(dedup_guarantees(dedup));
    }
    if let Some(inbox) = &facts.inbox {
        said.extend(inbox_guarantees(inbox, facts.dedup.as_ref()));
    }
    if let Some(dead) = &facts.dead_letter {
        let target = &dead.target;
        said.push(format!(
            "A message that fails for good is set aside in `{target}`, with its reason and origin."
        ));
    }
    if let Some(delayed) = &facts.delayed_retry {
        let delays: Vec<String> = delayed.delays.iter().map(|delay| words(*delay)).collect();
        let order = match delayed.parking {
            None => "later messages of its key pass it.".to_owned(),
            Some(limit) => format!(
                "with `ordering(Key)` later messages of its key are parked behind it, in order, and other keys go on. \
                 When {limit} of a key wait, further ones are set aside."
            ),
        };
        said.push(format!(
            "What still fails comes again by the broker after {}; {order}",
            delays.join(", then ")
        ));
    }
    if let Some(retry) = &facts.retry {
        said.push(retry_guarantee(retry));
    }
    if let Some(rate) = &facts.rate {
        let each = if rate.per_key { " for each key" } else { "" };
        said.push(format!(
            "{} a {}{each}; what comes faster waits and is not dropped.",
            at_most_calls(rate.calls),
            period(rate.period)
        ));
    }
    match facts.concurrency {
        Some(Some(max)) => said.push(format!("At most {} at once.", running(max))),
        Some(None) => said.push("The calls that run at once are limited.".to_owned()),
        None => {}
    }
    if let Some(timeout) = facts.timeout {
        said.push(format!("A call that takes longer than {} is dropped and has failed.", words(timeout)));
    }
    if facts.catch_panic {
        said.push("A panic in the handler is a transient failure of that message alone.".to_owned());
    }
    match (facts.trace, facts.metrics) {
        (true, true) => said.push("Each delivery has a span and is counted by outcome.".to_owned()),
        (true, false) => said.push("Each delivery has a span.".to_owned()),
        (false, true) => said.push("Each delivery is counted by outcome.".to_owned()),
        (false, false) => {}
    }
    said.extend(facts.foreign.iter().cloned());
    said
}

fn dedup_guarantees(dedup: &DedupFacts) -> Vec<String> {
    let (consumer, key) = (&dedup.consumer, &dedup.key);
    let mut said = vec![
        format!("Deduplication for the consumer `{consumer}` by {key}: {DEDUP}"),
        format!(
            "A completed key is remembered for {}; a claim holds for {} and is renewed while its handler runs.",
            words(dedup.retention),
            words(dedup.lease)
        ),
    ];
    if dedup.fingerprint {
        said.push(
            "A known key with another payload is never acknowledged in silence: it is a conflict.".to_owned(),
        );
    }
    if !dedup.bypass_on_outage {
        said.push("While the store is down nothing is processed; the source waits.".to_owned());
    }
    if !dedup.process_without_key {
        said.push("A message without a key is not processed: it fails for good.".to_owned());
    }
    said
}

fn inbox_guarantees(inbox: &InboxFacts, dedup: Option<&DedupFacts>) -> Vec<String> {
    let mut said = vec![
        format!("Inbox for the consumer `{}` by {}: {INBOX}", inbox.consumer, inbox.key),
        format!("The record of a message is kept for {}.", words(inbox.retention)),
    ];
    if let Some(max) = inbox.batch {
        said.push(format!(
            "Up to {max} messages share a transaction, one handler after another; one that fails takes none of the \
             others along, unless the transaction itself is lost."
        ));
    }
    if inbox.fingerprint && dedup.is_none() {
        said.push(
            "A known key with another payload is never acknowledged in silence: it is a conflict.".to_owned(),
        );
    }
    if !inbox.process_without_key && dedup.is_none_or(|dedup| dedup.process_without_key) {
        said.push("A message without a key is not processed: it fails for good.".to_owned());
    }
    said
}

fn retry_guarantee(retry: &RetryFacts) -> String {
    let attempts = retry.max_attempts;
    match retry.horizon {
        _ if attempts <= 1 => "A failure is not tried again; the failed call is counted.".to_owned(),
        Some(horizon) => format!(
            "A transient failure is tried again in this process, up to {attempts} attempts in all, with waits of at \
             most {} together.",
            words(horizon)
        ),
        None => {
            format!("A transient failure is tried again in this process, up to {attempts} attempts in all.")
        }
    }
}

fn limits(facts: &Facts) -> Vec<String> {
    let mut said = Vec::new();
    said.push(
        "Order: messages run in any order, unless the consumer is given `ordering(Key)` or `ordering(Partition)`."
            .to_owned(),
    );
    if let Some(delayed) = &facts.delayed_retry {
        let refused = match delayed.parking {
            None => "any order",
            Some(_) => "`ordering(Partition)`",
        };
        said.push(format!(
            "A run with {refused} is refused, for what waits for its delayed retry is passed."
        ));
    }
    if let Some(dedup) = &facts.dedup {
        if !dedup.survives_restart {
            said.push(
                "The dedup store lives in this process: a restart forgets every key, and other processes know none \
                 of them."
                    .to_owned(),
            );
        }
        if dedup.bypass_on_outage {
            said.push(
                "While the store is down messages are processed without protection, which is counted."
                    .to_owned(),
            );
            if facts.delayed_retry.as_ref().is_some_and(|delayed| delayed.parking.is_some()) {
                said.push(
                    "While the store is down no message is parked, and the order of keys that wait is not kept."
                        .to_owned(),
                );
            }
        }
        // With an inbox inside, what that does with such a message is what counts.
        if dedup.process_without_key && facts.inbox.is_none() {
            said.push(
                "Messages without a key are processed without protection, which is counted.".to_owned(),
            );
        }
        // Looked at first: a payload that it does not tell apart never comes to the inbox.
        if !dedup.fingerprint {
            said.push("A known key with another payload is taken for a duplicate.".to_owned());
        }
    }
    if let Some(inbox) = &facts.inbox {
        said.push(
            "What a handler does without the inbox's transaction may happen more than once.".to_owned(),
        );
        let dedup = facts.dedup.as_ref();
        if inbox.process_without_key && dedup.is_none_or(|dedup| dedup.process_without_key) {
            said.push("Messages without a key are processed without a record, which is counted.".to_owned());
        }
        match dedup {
            None if !inbox.fingerprint => {
                said.push("A known key with another payload is taken for a duplicate.".to_owned());
            }
            Some(dedup) if !inbox.fingerprint && dedup.fingerprint && dedup.retention < inbox.retention => {
                let known = words(dedup.retention);
                said.push(format!(
                    "After {known} a known key with another payload is taken for a duplicate."
                ));
            }
            _ => {}
        }
    }
    if facts.timeout.is_some() {
        let outside = if facts.inbox.is_some() { " outside the transaction" } else { "" };
        said.push(format!("A call that timed out may have had its effect{outside} all the same."));
    }
    if facts.rate.is_some() {
        said.push("The rate holds for this process: several processes have it once each.".to_owned());
    }
    if facts.retry.is_some() {
        said.push(
            "A process that dies in a backoff may forget the attempts since its claim was last renewed."
                .to_owned(),
        );
    }
    said
}

fn missing(facts: &Facts) -> Vec<String> {
    let mut said = Vec::new();
    if facts.dedup.is_none() && facts.inbox.is_none() {
        said.push("No deduplication: a message that is delivered again has its effect again.".to_owned());
    }
    if facts.dead_letter.is_none() {
        said.push(
            "No dead letters: a message that fails for good is presented again without end and holds its place."
                .to_owned(),
        );
    }
    if facts.retry.is_none() {
        let then = if facts.dead_letter.is_some() { "set aside" } else { "presented again" };
        said.push(format!("No retry: a message is {then} after its first failure, however short its cause."));
    }
    if facts.timeout.is_none() {
        said.push("No timeout: a call that never ends holds its message for ever.".to_owned());
    }
    if facts.concurrency.is_none() {
        said.push("No concurrency limit: as many calls run at once as messages are in flight.".to_owned());
    }
    if !facts.catch_panic {
        said.push("No catch-panic: a panic passes by the retries and the dead letters.".to_owned());
    }
    if let (Some(dedup), Some(longest)) = (&facts.dedup, longest_way(facts)) {
        if dedup.retention < longest {
            said.push(too_short("The retention", dedup.retention, longest));
        }
        if dedup.retention < dedup.lease {
            said.push(format!(
                "The retention of {} is shorter than the lease of {}.",
                words(dedup.retention),
                words(dedup.lease)
            ));
        }
    }
    if let (Some(inbox), Some(longest)) = (&facts.inbox, longest_way(facts))
        && inbox.retention < longest
    {
        said.push(too_short("The inbox's retention", inbox.retention, longest));
    }
    said
}

fn too_short(what: &str, retention: Duration, longest: Duration) -> String {
    format!(
        "{what} of {} is shorter than the longest way back that this stack knows ({}: attempts, waits and delays): a \
         duplicate that comes so late runs again.",
        words(retention),
        words(longest)
    )
}

/// The longest time from the first attempt to the end of the last, as far as it is known. A failure that asks for a wait
/// of its own may make it longer.
fn longest_way(facts: &Facts) -> Option<Duration> {
    let waits = facts.retry.as_ref().map(|retry| retry.horizon).unwrap_or_default();
    let delays = facts.delayed_retry.as_ref().map_or(&[][..], |delayed| &delayed.delays);
    if waits.is_none() && delays.is_empty() {
        return None;
    }
    let attempts = facts.retry.as_ref().map_or(1, |retry| retry.max_attempts);
    // Each delay is followed by one call.
    let calls = attempts.saturating_add(u32::try_from(delays.len()).unwrap_or(u32::MAX));
    let calls = facts.timeout.unwrap_or_default().saturating_mul(calls);
    let delays = delays.iter().fold(Duration::ZERO, |sum, delay| sum.saturating_add(*delay));
    Some(waits.unwrap_or_default().saturating_add(calls).saturating_add(delays))
}

fn words(duration: Duration) -> String {
    format_duration(duration).to_string()
}

fn period(period: Duration) -> String {
    if period == Duration::from_secs(1) {
        "second".to_owned()
    } else {
        format!("period of {}", words(period))
    }
}

fn at_most_calls(calls: u32) -> String {
    format!("At most {calls} {}", if calls == 1 { "call" } else { "calls" })
}

fn running(max: usize) -> String {
    if max == 1 { "1 call runs".to_owned() } else { format!("{max} calls run") }
}
