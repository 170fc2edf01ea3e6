//! Every rule on parked keys can fail: for each there is a store that breaks it.
//!
//! The stores are the in-memory one with one fault each.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_core::{
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, ParkOperation, ParkReply, ParkRequest, RenewRequest,
        Renewal, Resolution, Resolved, StoreError, StoreKey, parking::Parked,
    },
    memory::MemoryStore,
};
use consumer_testing::conformance::store::{self, StoreUnderTest};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    EveryKeyIsParked,
    SortsById,
    AppendsTwice,
    HasNoLimit,
    ForgetsTheWait,
    TakesAnybodysWait,
    OneListForAll,
    IdempotencyKeysAreLists,
    ProlongedByAnybody,
    ParksWhenPolled,
}

/// The lists by key; what is wrong is done to them.
type Lists = Arc<Mutex<Vec<(StoreKey, Parked)>>>;

#[derive(Clone)]
struct Faulty {
    fault: Fault,
    memory: MemoryStore,
    lists: Lists,
    started: Instant,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self { fault, memory: MemoryStore::new(), lists: Lists::default(), started: Instant::now() }
    }

    fn apply(&self, mut request: ParkRequest) -> ParkReply {
        let now = 1_000_000 + u64::try_from(self.started.elapsed().as_millis()).unwrap();
        if self.fault == Fault::OneListForAll {
            request.key = StoreKey::new("all".into(), "all".into());
        }
        let mut lists = self.lists.lock().unwrap();
        let place = lists.iter().position(|(key, _)| *key == request.key).unwrap_or_else(|| {
            lists.push((request.key.clone(), Parked::default()));
            lists.len() - 1
        });
        let parked = &mut lists[place].1;
        let operation = &mut request.operation;
        match (self.fault, &mut *operation) {
            (Fault::EveryKeyIsParked, ParkOperation::Enter { .. }) if parked.ids.is_empty() => {
                return ParkReply::First;
            }
            (Fault::HasNoLimit, ParkOperation::Enter { limit }) => *limit = u32::MAX,
            (Fault::ForgetsTheWait, ParkOperation::Defer { wait }) => *wait = Duration::ZERO,
            (Fault::AppendsTwice, ParkOperation::Defer { .. }) if parked.ids.contains(&request.id) => {
                parked.ids.push(request.id);
            }
            _ => {}
        }
        let operation = *operation;
        let reply = parked.apply(&request, now);
        match (self.fault, operation) {
            (Fault::SortsById, _) => parked.ids.sort_unstable(),
            (Fault::TakesAnybodysWait, ParkOperation::Defer { wait }) => {
                parked.until = now + u64::try_from(wait.as_millis()).unwrap();
            }
            (Fault::ProlongedByAnybody, _) => parked.expires_at = now + 1_000_000_000,
            _ => {}
        }
        reply
    }
}

impl DedupStore for Faulty {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.memory.claim(request)
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        if self.fault == Fault::IdempotencyKeysAreLists {
            // A new record of the key is written over the list.
            self.lists.lock().unwrap().retain(|(key, _)| *key != claim.key);
        }
        self.memory.resolve(claim, resolution, lifetime)
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.memory.renew(requests)
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        let store = self.clone();
        let at_once = (self.fault != Fault::ParksWhenPolled).then(|| self.apply(request.clone()));
        async move { Ok(at_once.unwrap_or_else(|| store.apply(request))) }
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.memory.flush()
    }
}

impl StoreUnderTest for Faulty {
    type Store = Faulty;

    async fn store(&self) -> Faulty {
        self.clone()
    }
}

/// Whether the store with this fault keeps the rule.
fn keeps(fault: Fault, rule: &str) -> bool {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _inside = runtime.enter();
    let subject = Faulty::new(fault);
    let check: Pin<Box<dyn Future<Output = ()> + '_>> = match rule {
        "free" => Box::pin(store::a_key_is_free_until_a_message_of_it_is_deferred(&subject)),
        "order" => Box::pin(store::messages_of_a_parked_key_have_their_turn_in_order(&subject)),
        "twice" => Box::pin(store::asking_twice_about_a_parked_key_changes_nothing(&subject)),
        "limit" => Box::pin(store::so_many_and_no_more_are_parked(&subject)),
        "wait" => Box::pin(store::those_behind_learn_how_long_the_first_one_waits(&subject)),
        "apart" => Box::pin(store::parked_keys_are_kept_apart(&subject)),
        "forgotten" => Box::pin(store::a_first_message_that_never_comes_back_frees_its_key(&subject)),
        "dropped" => Box::pin(store::operations_happen_though_their_futures_are_dropped(&subject)),
        _ => panic!("there is no rule {rule}"),
    };
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(check))).is_ok()
}

#[test]
fn every_rule_on_parked_keys_finds_a_store_that_breaks_it() {
    let faults = [
        (Fault::EveryKeyIsParked, "free"),
        (Fault::SortsById, "order"),
        (Fault::AppendsTwice, "twice"),
        (Fault::HasNoLimit, "limit"),
        (Fault::ForgetsTheWait, "wait"),
        (Fault::TakesAnybodysWait, "wait"),
        (Fault::OneListForAll, "apart"),
        (Fault::IdempotencyKeysAreLists, "apart"),
        (Fault::ProlongedByAnybody, "forgotten"),
        (Fault::ParksWhenPolled, "dropped"),
    ];
    for (fault, rule) in faults {
        assert!(keeps(Fault::None, rule), "{rule} holds without a fault");
        assert!(!keeps(fault, rule), "{rule} does not find {fault:?}");
    }
}
