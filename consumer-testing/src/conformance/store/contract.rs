//! What holds for every operation.

use std::{future::poll_fn, time::Duration};

use consumer_core::dedup::{
    ClaimReply, DedupStore, Mode, ParkOperation, ParkReply, RenewRequest, Resolution,
};

use super::{A, B, Case, StoreUnderTest};

/// Every operation is enqueued by the call, not by the first poll, and `flush` waits for it (failure mode 35).
pub async fn operations_happen_though_their_futures_are_dropped<T: StoreUnderTest>(subject: &T) {
    let rule = "operations_happen_though_their_futures_are_dropped";
    let case = Case::new(subject, rule).await;
    let other = subject.store().await;

    drop(case.store.claim(case.ask(A, 1)));
    flush(&case).await;
    let reply = other.claim(case.ask(B, 1)).await.expect("a claim is answered");
    assert!(matches!(reply, ClaimReply::Busy { .. }), "{rule}: claim: got {reply:?}");
    let claim = case.claimed(case.ask(A, 1)).await;

    let request = RenewRequest { claim: claim.clone(), attempts: 5, mode: Mode::Normal };
    drop(case.store.renew(vec![request]));
    flush(&case).await;
    drop(case.store.resolve(claim, Resolution::Failed { attempts: 1 }, case.retention()));
    flush(&case).await;
    let claim = match other.claim(case.ask(B, 2)).await.expect("a claim is answered") {
        ClaimReply::Claimed(claim) => claim,
        reply => panic!("{rule}: resolve: got {reply:?}"),
    };
    assert_eq!(claim.attempts, 5, "{rule}: renew");

    drop(case.store.park(case.park_request(1, ParkOperation::Defer { wait: case.lease() })));
    flush(&case).await;
    case.expect_turn(1, ParkReply::First, "defer").await;
    drop(case.store.park(case.park_request(2, ParkOperation::Enter { limit: 10 })));
    flush(&case).await;
    drop(case.store.park(case.park_request(1, ParkOperation::Leave)));
    flush(&case).await;
    case.expect_turn(2, ParkReply::First, "enter and leave").await;

    drop(other.resolve(claim, Resolution::Completed, case.retention()));
    other.flush().await.expect("flush is answered");
    case.expect(case.ask(A, 3), ClaimReply::Completed, "complete").await;
}

async fn flush<T: StoreUnderTest>(case: &Case<'_, T>) {
    case.store.flush().await.unwrap_or_else(|error| panic!("{}: flush failed: {error}", case.rule));
}

/// A store that is reachable does not hold messages up.
pub async fn a_store_that_is_up_says_so<T: StoreUnderTest>(subject: &T) {
    let store = subject.store().await;
    let up = poll_fn(|cx| store.poll_available(cx));
    let up = tokio::time::timeout(Duration::from_secs(10), up).await;
    assert!(up.is_ok(), "a_store_that_is_up_says_so: poll_available stays pending");
}
