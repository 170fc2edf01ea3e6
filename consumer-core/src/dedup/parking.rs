//! Which messages of a key wait, in their order: the specification that every store follows.
//!
//! While a message waits for its delayed retry, later ones of its message key wait behind it. A store holds a [`Parked`]
//! for each such key and makes each [`ParkRequest`] one atomic step, as [`apply`](Parked::apply) does. Every operation
//! may be repeated: the second time it changes nothing. One that a store has given up and that arrives after later ones
//! can put a message into the list which does not come any more; the key is then parked until its list runs out.
//!
//! The list and not the broker keeps the order. A message that comes back and is not the first of it waits again.

use std::time::Duration;

use super::{StoreKey, protocol::millis};

/// Asks something of the list of a message key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkRequest {
    /// The logical consumer and the message key. A store keeps it apart from the idempotency key of the same bytes.
    pub key: StoreKey,
    /// The message: the hash of its idempotency key.
    pub id: u128,
    /// What is asked.
    pub operation: ParkOperation,
    /// How long the list is kept once its first message is due: when that one never comes back, the key is free again.
    pub lifetime: Duration,
}

/// What is asked of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkOperation {
    /// Before the handler: is it this message's turn? If others wait before it, it waits behind them.
    Enter {
        /// So many may wait, the first included.
        limit: u32,
    },
    /// It has failed and waits for its retry.
    Defer {
        /// For so long.
        wait: Duration,
    },
    /// It is done with: the next one has its turn.
    Leave,
}

/// What a store answers to a [`ParkRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkReply {
    /// To `Enter`: nobody waits. Nothing is written.
    Free,
    /// To `Enter`: this message is the first of those that wait.
    First,
    /// To `Enter`: it waits behind others.
    Behind {
        /// What is left of the wait of the first one; zero when that is over or not known.
        remaining: Duration,
    },
    /// To `Enter`: too many wait. Nothing is written.
    Full,
    /// To `Defer` and `Leave`.
    Done,
}

/// The messages of a key that wait. Times are milliseconds of the store's clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parked {
    /// In their order; none is no record.
    pub ids: Vec<u128>,
    /// When the first one comes back; 0 where that is not known.
    pub until: u64,
    /// When all of it is forgotten: the order is lost then, the messages are not.
    pub expires_at: u64,
}

impl Parked {
    /// Takes one step. `now` is the store's clock in milliseconds since the Unix epoch.
    pub fn apply(&mut self, request: &ParkRequest, now: u64) -> ParkReply {
        if self.expires_at <= now {
            *self = Self::default();
        }
        let id = request.id;
        let place = self.ids.iter().position(|known| *known == id);
        match request.operation {
            ParkOperation::Enter { .. } if self.ids.is_empty() => ParkReply::Free,
            ParkOperation::Enter { limit } => match place {
                Some(0) => ParkReply::First,
                None if self.ids.len() >= limit as usize => ParkReply::Full,
                place => {
                    if place.is_none() {
                        self.ids.push(id);
                    }
                    ParkReply::Behind { remaining: Duration::from_millis(self.until.saturating_sub(now)) }
                }
            },
            ParkOperation::Defer { wait } => {
                if place.is_none() {
                    self.ids.push(id);
                }
                if self.ids.first() == Some(&id) {
                    self.until = now.saturating_add(millis(wait));
                    self.expires_at = self.until.saturating_add(millis(request.lifetime));
                }
                ParkReply::Done
            }
            ParkOperation::Leave => {
                if let Some(place) = place {
                    self.ids.remove(place);
                    // Only the first one is looked out for: those behind it may come back as often as they like.
                    if place == 0 {
                        self.until = 0;
                        self.expires_at = now.saturating_add(millis(request.lifetime));
                    }
                }
                ParkReply::Done
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: u64 = 1_000_000;

    struct List(Parked, u64);

    impl List {
        fn ask(&mut self, id: u128, operation: ParkOperation) -> ParkReply {
            let key = StoreKey::new("c".into(), "k".into());
            self.0.apply(&ParkRequest { key, id, operation, lifetime: 100 * SECOND }, self.1)
        }

        fn enter(&mut self, id: u128) -> ParkReply {
            self.ask(id, ParkOperation::Enter { limit: 3 })
        }

        fn defer(&mut self, id: u128, seconds: u32) {
            assert_eq!(self.ask(id, ParkOperation::Defer { wait: seconds * SECOND }), ParkReply::Done);
        }

        fn leave(&mut self, id: u128) {
            assert_eq!(self.ask(id, ParkOperation::Leave), ParkReply::Done);
        }

        fn pass(&mut self, seconds: u64) {
            self.1 += seconds * 1000;
        }
    }

    fn list() -> List {
        List(Parked::default(), NOW)
    }

    fn behind(seconds: u64) -> ParkReply {
        ParkReply::Behind { remaining: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_free_key_writes_nothing_and_a_deferred_message_is_the_first() {
        let mut list = list();
        assert_eq!(list.enter(1), ParkReply::Free);
        assert_eq!(list.0, Parked::default());
        list.defer(1, 30);
        assert_eq!((list.enter(1), list.enter(2)), (ParkReply::First, behind(30)));
        assert_eq!(list.0.ids, [1, 2]);
    }

    #[test]
    fn each_has_its_turn_in_the_order_they_came() {
        let mut list = list();
        list.defer(1, 30);
        list.enter(2);
        list.pass(10);
        assert_eq!((list.enter(3), list.enter(2)), (behind(20), behind(20)));
        list.leave(1);
        // Nobody knows when the next one comes back.
        assert_eq!((list.enter(3), list.enter(2)), (behind(0), ParkReply::First));
        list.leave(3);
        list.leave(2);
        assert_eq!((list.enter(4), list.0.ids.len()), (ParkReply::Free, 0));
    }

    #[test]
    fn what_is_repeated_changes_nothing() {
        let mut list = list();
        list.defer(1, 30);
        list.enter(2);
        let before = list.0.clone();
        list.defer(1, 30);
        list.enter(2);
        assert_eq!(list.0, before);
        list.leave(1);
        let after = list.0.clone();
        list.leave(1);
        assert_eq!((list.0.clone(), list.0.ids.len()), (after, 1));
    }

    #[test]
    fn the_limit_is_for_those_who_come_and_not_for_those_who_wait() {
        let mut list = list();
        list.defer(1, 30);
        list.enter(2);
        list.enter(3);
        assert_eq!((list.enter(4), list.enter(3)), (ParkReply::Full, behind(30)));
        // What has run and failed is not refused a place.
        list.defer(4, 30);
        assert_eq!(list.0.ids, [1, 2, 3, 4]);
    }

    #[test]
    fn one_that_is_not_first_does_not_say_when_the_first_comes() {
        let mut list = list();
        list.defer(1, 30);
        list.defer(2, 300);
        assert_eq!(list.enter(3), behind(30));
    }

    #[test]
    fn a_first_one_that_never_comes_back_frees_the_key() {
        let mut list = list();
        list.defer(1, 30);
        list.pass(129);
        // Those behind it do not prolong it.
        assert_eq!(list.enter(2), behind(0));
        list.pass(1);
        assert_eq!((list.enter(2), list.enter(1)), (ParkReply::Free, ParkReply::Free));
        list.defer(1, 30);
        list.enter(2);
        list.pass(129);
        list.leave(1);
        list.pass(99);
        assert_eq!(list.enter(2), ParkReply::First, "the next one has its time from when its turn came");
        list.pass(1);
        assert_eq!(list.enter(2), ParkReply::Free);
    }
}
