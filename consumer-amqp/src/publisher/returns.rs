//! Which publish a returned message belongs to.
//!
//! The broker returns what it cannot route before it confirms it. The driver hands the oldest return to whatever publish
//! it resolves next, and the publishes of one confirm that stands for many it resolves in no order. So what a confirm
//! brings along may belong to another one, and a verdict has to wait until it is known that no return is on its way:
//!
//! - Returns come in the order of the publishes, so a publish is safe from a return when one of a later publish was seen.
//! - A confirm without a return says that the driver had none left.
//! - When every earlier publish is resolved, there are none for it: each of them took one, as long as there were any.

use lapin::{Confirmation, message::BasicReturnMessage};
use std::collections::BTreeMap;

/// What is known of a publish that is on its way.
#[derive(Debug)]
pub(super) struct Flying<J> {
    pub(super) job: J,
    answer: Option<bool>,
    returned: Option<String>,
    /// It came with the return of an earlier publish: its own may follow.
    unsure: bool,
}

/// How a publish has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stored,
    /// With what the broker says.
    Returned(String),
    Refused,
}

/// What tells one publish from another in a return.
pub(super) trait Matches {
    fn matches(&self, returned: &BasicReturnMessage) -> bool;
}

/// The publishes of one channel, by their number.
#[derive(Debug)]
pub(super) struct Flights<J> {
    by_number: BTreeMap<u64, Flying<J>>,
    next: u64,
    answered: Vec<u64>,
}

impl<J: Matches> Flights<J> {
    pub(super) fn new() -> Self {
        Self { by_number: BTreeMap::new(), next: 0, answered: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    pub(super) fn add(&mut self, job: J) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_number.insert(number, Flying { job, answer: None, returned: None, unsure: false });
        number
    }

    pub(super) fn jobs(&mut self) -> impl Iterator<Item = &mut J> {
        self.by_number.values_mut().map(|flying| &mut flying.job)
    }

    /// The broker has answered the publish of this number.
    pub(super) fn confirmed(&mut self, number: u64, confirmation: Confirmation) {
        let stored = !confirmation.is_nack();
        let owner = confirmation.take_message().map(|returned| self.returned(&returned));
        let Some(flying) = self.by_number.get_mut(&number) else { return };
        flying.answer = Some(stored);
        flying.unsure = owner.is_some_and(|owner| owner.is_none_or(|owner| owner < number));
        self.answered.push(number);
    }

    fn returned(&mut self, returned: &BasicReturnMessage) -> Option<u64> {
        let reason = format!("{} {}", returned.reply_code, returned.reply_text);
        let mut open = self.by_number.iter_mut().filter(|(_, flying)| flying.returned.is_none());
        let found = open.find(|(_, flying)| flying.job.matches(returned));
        let Some((number, flying)) = found else {
            tracing::error!(routing_key = %returned.routing_key, reason, "rabbitmq returned what was not published here");
            return None;
        };
        flying.returned = Some(reason);
        Some(*number)
    }

    /// Those whose end is known. To be called when every answer that is there was taken.
    pub(super) fn ended(&mut self) -> Vec<(J, Verdict)> {
        let mut ended = Vec::new();
        for number in std::mem::take(&mut self.answered) {
            let earlier = || self.by_number.range(..number).all(|(_, flying)| flying.answer.is_some());
            let known = self
                .by_number
                .get(&number)
                .is_some_and(|flying| !flying.unsure || flying.returned.is_some() || earlier());
            if !known {
                self.answered.push(number);
                continue;
            }
            if let Some(Flying { job, answer, returned, .. }) = self.by_number.remove(&number) {
                let verdict = match returned {
                    Some(reason) => Verdict::Returned(reason),
                    None if answer == Some(true) => Verdict::Stored,
                    None => Verdict::Refused,
                };
                ended.push((job, verdict));
            }
        }
        ended
    }

    /// Those that the broker has not answered, in their order; the channel is gone. An answer without a known end is
    /// none.
    pub(super) fn take_all(&mut self) -> Vec<J> {
        self.answered.clear();
        std::mem::take(&mut self.by_number).into_values().map(|flying| flying.job).collect()
    }
}
