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
    /// Target, id and payload are the same.
    fn matches(&self, returned: &BasicReturnMessage) -> bool;
    /// All properties are, too.
    fn matches_fully(&self, returned: &BasicReturnMessage) -> bool;
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
        let open = || self.by_number.iter().filter(|(_, flying)| flying.returned.is_none());
        let alike = || open().filter(|(_, flying)| flying.job.matches(returned)).map(|(number, _)| *number);
        let fully =
            open().find(|(_, flying)| flying.job.matches(returned) && flying.job.matches_fully(returned));
        let number = fully.map(|(number, _)| *number).or_else(|| alike().next());
        let Some((number, flying)) = number.and_then(|n| Some((n, self.by_number.get_mut(&n)?))) else {
            // As a value: they show it escaped.
            let routing_key = returned.routing_key.as_str();
            tracing::error!(routing_key, reason, "rabbitmq returned what was not published here");
            return None;
        };
        flying.returned = Some(reason);
        Some(number)
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

    /// Those that have not ended, in their order; the channel is gone. An answer without a known end is none.
    pub(super) fn take_all(&mut self) -> Vec<J> {
        self.answered.clear();
        std::mem::take(&mut self.by_number).into_values().map(|flying| flying.job).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::message::Delivery;
    use proptest::prelude::*;
    use std::{
        collections::VecDeque,
        io,
        sync::{Arc, Mutex},
    };

    /// A publish, by its payload.
    #[derive(Debug, PartialEq)]
    struct Job(u8);

    impl Matches for Job {
        fn matches(&self, returned: &BasicReturnMessage) -> bool {
            returned.data == [self.0]
        }

        fn matches_fully(&self, _: &BasicReturnMessage) -> bool {
            true
        }
    }

    fn returned(payload: u8) -> BasicReturnMessage {
        let delivery = Delivery::mock(0, "".into(), "q".into(), false, vec![payload]);
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn flights(count: u8) -> Flights<Job> {
        let mut flights = Flights::new();
        for n in 0..count {
            assert_eq!(flights.add(Job(n)), u64::from(n));
        }
        flights
    }

    fn ends(flights: &mut Flights<Job>) -> Vec<(u8, bool)> {
        flights.ended().into_iter().map(|(job, verdict)| (job.0, verdict == Verdict::Stored)).collect()
    }

    #[test]
    fn a_return_finds_its_own_publish() {
        let mut flights = flights(3);
        // One confirm for all three, resolved from the last to the first; the first was returned.
        flights.confirmed(2, Confirmation::Ack(Some(returned(0))));
        assert_eq!(ends(&mut flights), [], "whether it has a return of its own is not known yet");
        flights.confirmed(1, Confirmation::Ack(None));
        flights.confirmed(0, Confirmation::Ack(None));
        assert_eq!(ends(&mut flights), [(2, true), (1, true), (0, false)]);
        assert!(flights.is_empty());
    }

    #[test]
    fn a_return_that_comes_with_an_earlier_publish_is_kept_for_its_own() {
        let mut flights = flights(2);
        flights.confirmed(0, Confirmation::Ack(Some(returned(1))));
        assert_eq!(ends(&mut flights), [(0, true)]);
        flights.confirmed(1, Confirmation::Ack(None));
        assert_eq!(ends(&mut flights), [(1, false)]);
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_return_that_is_nobodys_adds_no_line_to_the_log() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let delivery = Delivery::mock(0, "".into(), "q\nERROR\u{1b}[2J\u{202e}".into(), false, vec![7]);
        let returned = BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO\nROUTE".into() };
        tracing::subscriber::with_default(subscriber, || {
            flights(1).confirmed(0, Confirmation::Ack(Some(returned)));
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains(r#""q\nERROR\u{1b}[2J\u{202e}""#) && text.lines().count() == 1, "{text:?}");
    }

    #[test]
    fn a_nack_is_no_success() {
        let mut flights = flights(1);
        flights.confirmed(0, Confirmation::Nack(None));
        assert_eq!(flights.ended(), [(Job(0), Verdict::Refused)]);
    }

    #[test]
    fn what_is_open_is_given_back_in_its_order() {
        let mut flights = flights(4);
        flights.confirmed(1, Confirmation::Ack(None));
        assert_eq!(ends(&mut flights), [(1, true)]);
        flights.confirmed(2, Confirmation::Ack(Some(returned(0))));
        assert_eq!(flights.take_all(), [Job(0), Job(2), Job(3)]);
        assert!(ends(&mut flights).is_empty());
    }

    /// The broker and the driver: returns come in the order of the publishes and before their confirms; each publish that
    /// the driver resolves takes the oldest return there is.
    struct Driver {
        unroutable: Vec<bool>,
        sent_returns: usize,
        waiting: VecDeque<u8>,
        open: Vec<u8>,
    }

    impl Driver {
        /// The broker has seen the publishes up to `number`: their returns are here.
        fn see(&mut self, number: usize) {
            for n in self.sent_returns..=number {
                if self.unroutable[n] {
                    self.waiting.push_back(n as u8);
                }
            }
            self.sent_returns = self.sent_returns.max(number + 1);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_order_each_verdict_is_right_and_every_publish_ends(
            unroutable in prop::collection::vec(any::<bool>(), 1..12),
            picks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 60),
        ) {
            let count = unroutable.len();
            let mut flights = flights(count as u8);
            let open = (0..count as u8).collect();
            let mut driver = Driver { unroutable: unroutable.clone(), sent_returns: 0, waiting: VecDeque::new(), open };
            let mut ended = BTreeMap::new();
            for (which, ahead, multiple, look) in picks {
                if driver.open.is_empty() {
                    break;
                }
                let number = *which.get(&driver.open);
                // Returns may be ahead of the confirms.
                driver.see(number as usize);
                driver.see((number as usize + ahead.index(3)).min(count - 1));
                // The driver's order within one confirm that stands for several.
                let mut confirmed: Vec<u8> =
                    driver.open.iter().copied().filter(|n| if multiple { *n <= number } else { *n == number }).collect();
                if look {
                    confirmed.reverse();
                }
                let all = confirmed.len();
                for (done, n) in confirmed.into_iter().enumerate() {
                    driver.open.retain(|open| *open != n);
                    let message = driver.waiting.pop_front().map(returned);
                    flights.confirmed(n.into(), Confirmation::Ack(message));
                    // Half way through, all answers that are there may be taken.
                    if look || done + 1 == all {
                        ended.extend(ends(&mut flights));
                    }
                }
            }
            let rest: Vec<u8> = driver.open.clone();
            for n in rest {
                driver.see(count - 1);
                let message = driver.waiting.pop_front().map(returned);
                flights.confirmed(n.into(), Confirmation::Ack(message));
            }
            ended.extend(ends(&mut flights));
            let expected: BTreeMap<u8, bool> = (0..count as u8).map(|n| (n, !unroutable[n as usize])).collect();
            prop_assert_eq!(ended, expected);
        }
    }
}
