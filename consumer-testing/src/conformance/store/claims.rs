//! Claiming and completing.

use bytes::Bytes;
use consumer_core::dedup::{ClaimReply, ClaimRequest, DedupStore, Mode, Renewal, Resolution, Resolved};

use super::{A, B, Case, StoreUnderTest};

/// Nothing is known of a fresh key, and its claim says so.
pub async fn a_fresh_key_is_claimed<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_fresh_key_is_claimed").await;
    let request = case.ask(A, 1);
    let claim = case.claimed(request.clone()).await;
    assert!(claim.epoch > 0, "a fresh claim has an epoch");
    assert_eq!((claim.attempts, claim.crashes, claim.suspect), (0, 0, false), "a fresh claim has no past");
    assert_eq!(claim.fingerprint, request.fingerprint, "a claim has the fingerprint it was asked with");
    assert_eq!((claim.redrive, claim.lease, claim.grace), (0, request.lease, request.grace));
}

/// A claimed key is busy for about the rest of its lease.
pub async fn another_owner_finds_it_busy<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "another_owner_finds_it_busy").await;
    case.claimed(case.ask(A, 1)).await;
    let other = case.expect_busy(case.ask(B, 1), "a foreign process").await;
    assert!(other <= case.lease(), "remaining {other:?} is beyond the lease");
    assert!(other > case.lease() / 2, "remaining {other:?} is far below the lease");
    case.expect_busy(case.ask(A, 2), "another claim of the same process").await;
    case.pass(0.5).await;
    let later = case.expect_busy(case.ask(B, 2), "half a lease later").await;
    assert!(later < other, "the remaining time shrinks: {other:?}, then {later:?}");
}

/// A claim whose reply was lost is granted again, with the same epoch (failure mode 03).
pub async fn a_claim_recognises_its_own_nonce<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_claim_recognises_its_own_nonce").await;
    drop(case.store.claim(case.ask(A, 1)));
    let first = case.claimed(case.ask(A, 1)).await;
    let again = case.claimed(case.ask(A, 1)).await;
    assert_eq!(first, again, "asking again with the same nonce changes nothing");
    case.pass(1.5).await;
    let late = case.claimed(case.ask(A, 1)).await;
    assert_eq!(late.epoch, first.epoch, "nobody took it over: it is still the same claim");
    assert!(!late.suspect, "nobody died");
    case.expect_busy(case.ask(B, 1), "asking again has prolonged the lease").await;
}

/// The same key of two consumers, and two keys of one consumer, have nothing to do with each other.
pub async fn scopes_and_keys_are_kept_apart<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "scopes_and_keys_are_kept_apart").await;
    let scope = crate::unique("scope");
    let claim = case.claimed(case.ask(A, 1)).await;
    case.apply(&claim, Resolution::Completed).await;
    let other_scope = case.other(&scope, "key");
    other_scope.claimed(other_scope.ask(B, 1)).await;
    let other_key = case.other(case.key.scope(), "key2");
    other_key.claimed(other_key.ask(B, 2)).await;
    // No separator can be forged: the parts are not just joined.
    let (long, short) = (format!("{scope}:a"), scope.clone());
    let first = case.other(&long, "b");
    first.claimed(first.ask(A, 2)).await;
    let second = case.other(&short, "a:b");
    second.claimed(second.ask(B, 3)).await;
}

/// Keys are bytes: empty, binary or long.
pub async fn keys_may_hold_any_bytes<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "keys_may_hold_any_bytes").await;
    let keys = [Bytes::new(), Bytes::from_static(b"\0\r\n\xff{}"), Bytes::from(vec![b'k'; 100_000])];
    for (n, key) in keys.into_iter().enumerate() {
        let case = case.other(case.key.scope(), key);
        let claim = case.claimed(case.ask(A, n as u64)).await;
        case.apply(&claim, Resolution::Completed).await;
        case.expect(case.ask(B, n as u64), ClaimReply::Completed, "it was completed").await;
    }
}

/// Nothing moves a completed key to another state before its retention ends (failure mode 06).
pub async fn completed_is_absorbing<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "completed_is_absorbing").await;
    let claim = case.claimed(case.ask(A, 1)).await;
    case.apply(&claim, Resolution::Completed).await;
    case.expect(case.ask(B, 1), ClaimReply::Completed, "a duplicate").await;
    case.expect(case.ask(A, 1), ClaimReply::Completed, "the claim's own nonce").await;
    let redriven = ClaimRequest { redrive: 3, attempt: 4, ..case.ask(B, 2) };
    case.expect(redriven, ClaimReply::Completed, "a redrive of what is done").await;
    for resolution in [
        Resolution::Returned { attempts: 1 },
        Resolution::Failed { attempts: 1 },
        Resolution::DeadLettered,
        Resolution::Deferred { attempt: 2 },
    ] {
        let resolved = case.resolve(&claim, resolution).await;
        assert_eq!(resolved, Resolved::NotOwner, "completed_is_absorbing: {resolution:?} changes nothing");
    }
    assert_eq!(case.renew(&claim, 0, Mode::Normal).await, Renewal::Completed, "a renewal learns of it");
    let again = case.resolve(&claim, Resolution::Completed).await;
    assert_eq!(again, Resolved::AlreadyCompleted, "completing twice");
    case.expect(case.ask(B, 3), ClaimReply::Completed, "after all of that").await;
}

/// After the retention a key is fresh again, and its epoch still grows.
pub async fn completed_ends_with_its_retention_and_the_epoch_goes_on<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "completed_ends_with_its_retention_and_the_epoch_goes_on").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.resolve_for(&first, Resolution::Completed, case.lease() * 2).await;
    case.pass(1.0).await;
    case.expect(case.ask(B, 1), ClaimReply::Completed, "within the retention").await;
    case.pass(1.5).await;
    let second = case.claimed(ClaimRequest { fingerprint: Some(2), ..case.ask(B, 2) }).await;
    assert!(second.epoch > first.epoch, "epochs grow beyond the life of a record");
    assert_eq!((second.attempts, second.crashes, second.suspect), (0, 0, false), "and nothing else is left");
}

/// The same key with another payload is never acked (failure mode 17).
pub async fn another_payload_is_a_conflict<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "another_payload_is_a_conflict").await;
    let other = |seq| ClaimRequest { fingerprint: Some(2), ..case.ask(B, seq) };
    let claim = case.claimed(case.ask(A, 1)).await;
    case.expect(other(1), ClaimReply::Conflict, "while it is claimed").await;
    case.pass(1.5).await;
    case.expect(other(2), ClaimReply::Conflict, "while its lease has ended").await;
    case.apply(&claim, Resolution::Completed).await;
    case.expect(other(3), ClaimReply::Conflict, "when it is completed").await;
    case.expect(case.ask(B, 4), ClaimReply::Completed, "the same payload is a duplicate").await;

    let case = Case::new(subject, "another_payload_is_a_conflict").await;
    let claim = case.claimed(case.ask(A, 1)).await;
    case.apply(&claim, Resolution::Deferred { attempt: 2 }).await;
    let copy = ClaimRequest { attempt: 2, fingerprint: Some(2), ..case.ask(B, 1) };
    case.expect(copy, ClaimReply::Conflict, "when it is deferred").await;
}

/// Without a fingerprint nothing is compared, and a known one is not forgotten.
pub async fn an_unknown_fingerprint_equals_all<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_unknown_fingerprint_equals_all").await;
    let with = |seq, fingerprint| ClaimRequest { fingerprint, ..case.ask(A, seq) };
    let claim = case.claimed(with(1, Some(1))).await;
    case.expect_busy(with(2, None), "unknown against known").await;
    case.apply(&claim, Resolution::Deferred { attempt: 2 }).await;
    let copy = case.claimed(ClaimRequest { attempt: 2, ..with(3, None) }).await;
    assert_eq!(copy.fingerprint, Some(1), "the known fingerprint is kept");
    case.expect(with(4, Some(2)), ClaimReply::Conflict, "it is still compared").await;
    case.apply(&copy, Resolution::Completed).await;
    case.expect(with(5, None), ClaimReply::Completed, "unknown against completed").await;

    let case = Case::new(subject, "an_unknown_fingerprint_equals_all").await;
    let with = |seq, fingerprint| ClaimRequest { fingerprint, ..case.ask(A, seq) };
    let claim = case.claimed(with(1, None)).await;
    assert_eq!(claim.fingerprint, None);
    case.expect_busy(with(2, Some(1)), "known against unknown").await;
    case.apply(&claim, Resolution::Completed).await;
    case.expect(with(3, Some(1)), ClaimReply::Completed, "known against completed unknown").await;
}

/// Of 64 claims at once, exactly one is granted (failure mode 01).
pub async fn one_of_many_concurrent_claims_wins<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "one_of_many_concurrent_claims_wins").await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (store, request) = (case.store.clone(), case.ask(u128::from(n % 4), n));
        tasks.spawn(async move { store.claim(request).await });
    }
    let mut claims = 0;
    while let Some(answer) = tasks.join_next().await {
        match answer.expect("a claim does not panic").expect("a claim is answered") {
            ClaimReply::Claimed(_) => claims += 1,
            ClaimReply::Busy { .. } => {}
            other => panic!("one_of_many_concurrent_claims_wins: got {other:?}"),
        }
    }
    assert_eq!(claims, 1, "one_of_many_concurrent_claims_wins: {claims} of 64 claims were granted");
}

/// Claims that race with a completion see it or are busy, and never undo it (failure mode 06).
pub async fn a_completion_is_never_undone_by_concurrent_claims<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_completion_is_never_undone_by_concurrent_claims").await;
    let claim = case.claimed(case.ask(A, 0)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=32 {
        let (store, request) = (case.store.clone(), case.ask(B, n));
        tasks.spawn(async move { store.claim(request).await });
        if n == 16 {
            let completed = case.store.resolve(claim.clone(), Resolution::Completed, case.retention());
            tasks.spawn(async move { completed.await.map(|_| ClaimReply::Completed) });
        }
    }
    while let Some(answer) = tasks.join_next().await {
        let reply = answer.expect("a claim does not panic").expect("a claim is answered");
        let expected = matches!(reply, ClaimReply::Busy { .. } | ClaimReply::Completed);
        assert!(expected, "a_completion_is_never_undone_by_concurrent_claims: got {reply:?}");
    }
    case.expect(case.ask(B, 100), ClaimReply::Completed, "after the race").await;
}
