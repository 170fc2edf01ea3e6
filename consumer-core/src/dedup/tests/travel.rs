//! The claim that travels in a failure.

use std::{error::Error, fmt};

use super::*;
use crate::BoxError;

#[derive(Debug)]
struct Wrapper(BoxError);

impl fmt::Display for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer of somebody else")
    }
}

impl Error for Wrapper {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn fm33_the_claim_is_renewed_while_its_failure_is_on_its_way_also_behind_a_foreign_error() {
    for wrapped in [false, true] {
        let (store, calls) = (Spy::new(), Count::default());
        let process = process(&store, 1, {
            let calls = calls.clone();
            move |_| {
                calls.add();
                fails(Failure::permanent("no such order"))
            }
        });
        let mut failure = process.call(message("a")).await.unwrap_err();
        if wrapped {
            failure = Failure::from_error(Wrapper(failure.into()));
        }
        let duplicate = process.spawn(message("a"));
        for _ in 0..100 {
            sleep(SECOND).await;
            let rival = store.memory.claim(request("a", 2)).await.unwrap();
            assert!(matches!(rival, ClaimReply::Busy { .. }), "{rival:?}");
        }
        assert!(!duplicate.is_finished());
        let claim = failure.take_claim().expect("it is found");
        claim.resolve_failure(Resolution::DeadLettered, Duration::ZERO).await;
        assert_eq!(duplicate.await.unwrap().unwrap(), Outcome::Duplicate, "superseded by the dead letter");
        drop(failure);
        assert!(matches!(store.state("a"), State::DeadLettered(_)));
        assert_eq!(calls.get(), 1);
        process.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_dropped_unresolved_counts_as_failed_also_behind_a_foreign_error() {
    let store = Spy::new();
    let process = process(&store, 1, |_| fails(Failure::transient("down")));
    for attempts in 1..4 {
        let failure = process.call(message("a")).await.unwrap_err();
        let wrapped: BoxError = Box::new(Wrapper(failure.into()));
        assert!(matches!(store.state("a"), State::Claimed(_)));
        drop(wrapped);
        let State::Released(numbers) = store.state("a") else { panic!("{:?}", store.state("a")) };
        assert_eq!(numbers.attempts, attempts);
        sleep(SECOND).await;
        process.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn fm33_the_claim_of_a_failure_outlives_an_outage_that_is_longer_than_the_lease() {
    let store = Spy::new();
    let process = process(&store, 1, |_| fails(Failure::permanent("no such order")));
    let failure = process.call(message("a")).await.unwrap_err();
    store.memory.set_down(true);
    sleep(3 * LEASE).await;
    let asked = store.renew_calls();
    assert!(asked < 100, "{asked} renewals in three leases");
    store.memory.set_down(false);
    sleep(LEASE / 10).await;
    for _ in 0..100 {
        let rival = store.memory.claim(request("a", 2)).await.unwrap();
        assert!(matches!(rival, ClaimReply::Busy { .. }), "{rival:?}");
        sleep(SECOND).await;
    }
    drop(failure);
    sleep(SECOND).await;
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_dropped_outside_of_a_runtime_leaves_nothing_behind() {
    let store = Spy::new();
    let process = process(&store, 1, |_| fails(Failure::transient("down")));
    let failure = process.call(message("a")).await.unwrap_err();
    std::thread::spawn(move || drop(failure)).join().unwrap();
    assert!(matches!(store.state("a"), State::Released(_)));
    process.assert_empty();
}

/// Retries belong inside; outside they are slower, but must not stand still.
#[tokio::test(start_paused = true)]
async fn retries_outside_of_the_layer_do_not_wait_for_the_claim_of_their_own_failure() {
    for wait in [Duration::ZERO, SECOND] {
        let (store, attempts) = (Spy::new(), Arc::new(Mutex::new(Vec::new())));
        let process = process(&store, 1, {
            let attempts = attempts.clone();
            move |message| {
                attempts.lock().unwrap().push(message.attempt());
                if message.attempt() < 3 { fails(Failure::transient("down")) } else { ok() }
            }
        });
        let stack = crate::RetryLayer::fixed(wait).layer(process.dedup.clone());
        let handled = tokio::time::timeout(60 * SECOND, stack.oneshot(message("a"))).await;
        assert_eq!(handled.expect("it waits for itself").unwrap(), Outcome::Processed);
        assert_eq!(*attempts.lock().unwrap(), [1, 2, 3], "each failed call was recorded before the next one");
        process.assert_empty();
    }
}
