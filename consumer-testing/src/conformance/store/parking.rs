//! Who waits of a message key.

use std::time::Duration;

use consumer_core::dedup::{DedupStore, ParkOperation, ParkReply, ParkRequest, Resolution};

use super::{A, Case, StoreUnderTest};

/// Nobody waits of a key before a message of it was deferred, however often is asked.
pub async fn a_key_is_free_until_a_message_of_it_is_deferred<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_key_is_free_until_a_message_of_it_is_deferred").await;
    for id in [1, 2, 1] {
        case.expect_turn(id, ParkReply::Free, "nobody waits").await;
    }
    case.leave(1).await;
    case.expect_turn(1, ParkReply::Free, "leaving what one is not in changes nothing").await;
    case.defer(1, 1.0).await;
    case.expect_turn(1, ParkReply::First, "it waits").await;
    case.leave(1).await;
    case.expect_turn(2, ParkReply::Free, "the only one has left").await;
}

/// Later messages have their turn in the order they came in, whoever else comes or leaves (failure mode 22).
pub async fn messages_of_a_parked_key_have_their_turn_in_order<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "messages_of_a_parked_key_have_their_turn_in_order").await;
    // The order has nothing to do with the ids.
    let ids = [7, u128::MAX, 3, 5, 1 << 64, 2];
    case.defer(ids[0], 2.0).await;
    for id in &ids[1..] {
        case.expect_behind(*id, "another one waits").await;
    }
    case.leave(ids[3]).await;
    for (n, id) in ids.into_iter().enumerate().filter(|(n, _)| *n != 3) {
        for later in ids[n + 1..].iter().filter(|later| **later != ids[3]) {
            case.expect_behind(*later, "it is not its turn").await;
        }
        case.expect_turn(id, ParkReply::First, "it is its turn").await;
        // A second retry keeps the place.
        case.defer(id, 0.5).await;
        case.expect_turn(id, ParkReply::First, "it has failed once more").await;
        case.leave(id).await;
    }
    case.expect_turn(9, ParkReply::Free, "all have left").await;
}

/// Whatever is asked twice, for a reply that was lost, changes nothing the second time.
pub async fn asking_twice_about_a_parked_key_changes_nothing<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "asking_twice_about_a_parked_key_changes_nothing").await;
    for _ in 0..2 {
        case.defer(1, 1.0).await;
        case.expect_behind(2, "it comes again").await;
        case.expect_behind(3, "it comes again").await;
    }
    for id in [1, 2, 3] {
        case.expect_turn(id, ParkReply::First, "each has one place").await;
        case.leave(id).await;
    }
    case.expect_turn(3, ParkReply::Free, "each had one place").await;
    case.defer(1, 1.0).await;
    case.expect_behind(2, "another one waits").await;
    for _ in 0..2 {
        case.leave(1).await;
        case.expect_turn(2, ParkReply::First, "leaving twice takes nobody else along").await;
    }
}

/// The bound is for those who come, not for those who wait already or have run and failed.
pub async fn so_many_and_no_more_are_parked<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "so_many_and_no_more_are_parked").await;
    let enter = |id| case.enter_within(id, 3);
    case.defer(1, 1.0).await;
    for id in [2, 3] {
        assert!(matches!(enter(id).await, ParkReply::Behind { .. }), "there is room for {id}");
    }
    assert_eq!(enter(4).await, ParkReply::Full, "{}: a fourth of three", case.rule);
    assert_eq!(enter(1).await, ParkReply::First, "{}: the first one waits already", case.rule);
    assert!(matches!(enter(3).await, ParkReply::Behind { .. }), "{}: it waits already", case.rule);
    case.leave(1).await;
    case.expect_turn(2, ParkReply::First, "who was refused a place has none").await;
    assert!(matches!(enter(4).await, ParkReply::Behind { .. }), "{}: there is room again", case.rule);
    case.defer(5, 1.0).await;
    for id in [2, 3, 4] {
        case.expect_turn(id, ParkReply::First, "in order").await;
        case.leave(id).await;
    }
    case.expect_turn(5, ParkReply::First, "what has failed was not refused a place").await;
}

/// Those behind are told about how long the first one waits.
pub async fn those_behind_learn_how_long_the_first_one_waits<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "those_behind_learn_how_long_the_first_one_waits").await;
    let rule = case.rule;
    case.defer(1, 2.0).await;
    let full = case.expect_behind(2, "the first one waits").await;
    assert!(full <= case.lease() * 2 && full > case.lease(), "{rule}: {full:?} of two leases");
    case.pass(1.0).await;
    let half = case.expect_behind(2, "the first one waits").await;
    assert!(half < full && half <= case.lease(), "{rule}: {half:?} after {full:?} and one lease");
    case.defer(2, 50.0).await;
    let same = case.expect_behind(3, "the first one waits").await;
    assert!(same <= half, "{rule}: the wait of the second one is not that of the first: {same:?}");
    case.defer(1, 4.0).await;
    let anew = case.expect_behind(2, "the first one waits anew").await;
    assert!(anew > case.lease() * 3, "{rule}: {anew:?} of four leases");
    case.leave(1).await;
    let unknown = case.expect_behind(3, "the second one is the first now").await;
    assert_eq!(unknown, Duration::ZERO, "{rule}: nobody knows when the new first one comes");
    case.defer(2, 0.5).await;
    case.pass(1.0).await;
    let over = case.expect_behind(3, "the first one is late").await;
    assert_eq!(over, Duration::ZERO, "{rule}: the wait is over");
}

/// Keys, consumers, and the idempotency key of the same bytes have nothing to do with each other.
pub async fn parked_keys_are_kept_apart<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "parked_keys_are_kept_apart").await;
    case.defer(1, 1.0).await;
    let key = case.other(case.key.scope(), "key2");
    key.expect_turn(2, ParkReply::Free, "another key").await;
    let scope = case.other(&crate::unique("scope"), "key");
    scope.expect_turn(2, ParkReply::Free, "another consumer").await;
    let claim = case.claimed(case.ask(A, 1)).await;
    case.apply(&claim, Resolution::Completed).await;
    case.expect_turn(1, ParkReply::First, "its idempotency key is completed").await;
}

/// A list whose first message never comes back is forgotten, and others do not prolong it: a lost message holds a key up
/// for so long and no longer.
pub async fn a_first_message_that_never_comes_back_frees_its_key<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_first_message_that_never_comes_back_frees_its_key").await;
    let ask = |id, operation| {
        let lifetime = case.lease() * 2;
        case.park(ParkRequest { key: case.key.clone(), id, operation, lifetime })
    };
    let enter = |id| ask(id, ParkOperation::Enter { limit: 10 });
    let rule = case.rule;
    ask(1, ParkOperation::Defer { wait: case.lease() }).await;
    for id in 2..4 {
        case.pass(1.0).await;
        assert!(matches!(enter(id).await, ParkReply::Behind { .. }), "{rule}: within wait and lifetime");
        ask(id, ParkOperation::Defer { wait: case.lease() * 50 }).await;
        ask(9, ParkOperation::Leave).await;
    }
    case.pass(1.5).await;
    assert_eq!(enter(2).await, ParkReply::Free, "{rule}: those behind do not prolong it");

    ask(1, ParkOperation::Defer { wait: Duration::ZERO }).await;
    enter(2).await;
    case.pass(1.5).await;
    ask(1, ParkOperation::Leave).await;
    case.pass(1.0).await;
    assert_eq!(enter(2).await, ParkReply::First, "{rule}: the next one has its time from its turn on");
    case.pass(1.5).await;
    assert_eq!(enter(2).await, ParkReply::Free, "{rule}: and no longer");
}

impl<T: StoreUnderTest> Case<'_, T> {
    async fn park(&self, request: ParkRequest) -> ParkReply {
        let rule = self.rule;
        self.store.park(request).await.unwrap_or_else(|error| panic!("{rule}: park failed: {error}"))
    }

    pub(super) fn park_request(&self, id: u128, operation: ParkOperation) -> ParkRequest {
        ParkRequest { key: self.key.clone(), id, operation, lifetime: self.retention() }
    }

    async fn enter_within(&self, id: u128, limit: u32) -> ParkReply {
        self.park(self.park_request(id, ParkOperation::Enter { limit })).await
    }

    async fn defer(&self, id: u128, leases: f64) {
        let wait = self.lease().mul_f64(leases);
        let reply = self.park(self.park_request(id, ParkOperation::Defer { wait })).await;
        assert_eq!(reply, ParkReply::Done, "{}: deferring {id}", self.rule);
    }

    async fn leave(&self, id: u128) {
        let reply = self.park(self.park_request(id, ParkOperation::Leave)).await;
        assert_eq!(reply, ParkReply::Done, "{}: {id} leaves", self.rule);
    }

    pub(super) async fn expect_turn(&self, id: u128, expected: ParkReply, why: &str) {
        assert_eq!(self.enter_within(id, 100).await, expected, "{}: {id}: {why}", self.rule);
    }

    async fn expect_behind(&self, id: u128, why: &str) -> Duration {
        match self.enter_within(id, 100).await {
            ParkReply::Behind { remaining } => remaining,
            other => panic!("{}: {id}: {why}: expected behind, got {other:?}", self.rule),
        }
    }
}
