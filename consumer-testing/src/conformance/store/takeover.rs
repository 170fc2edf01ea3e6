//! Leases that end.

use consumer_core::dedup::{ClaimReply, ClaimRequest, Mode, Renewal, Resolution, Resolved};

use super::{A, B, Case, StoreUnderTest};

/// A claim whose process died is taken over when its lease ends, and runs alone (failure modes 02 and 11).
pub async fn an_expired_claim_is_taken_over_as_a_suspect<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_expired_claim_is_taken_over_as_a_suspect").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.pass(0.5).await;
    case.expect_busy(case.ask(B, 1), "before the lease ends").await;
    case.pass(1.0).await;
    let second = case.claimed(case.ask(B, 2)).await;
    assert_eq!(second.epoch, first.epoch + 1, "the epoch fences the first owner");
    assert!(second.suspect, "its owner may have died of it");
    assert_eq!(second.crashes, 0, "it did not run alone: no crash is counted");
    case.expect_busy(case.ask(A, 2), "the new owner holds it").await;
}

/// After an outage of the store one's own claims are no suspects.
pub async fn an_expired_claim_of_ones_own_process_is_no_suspect<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_expired_claim_of_ones_own_process_is_no_suspect").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.pass(1.5).await;
    let second = case.claimed(case.ask(A, 2)).await;
    assert_eq!((second.epoch, second.suspect, second.crashes), (first.epoch + 1, false, 0));
}

/// A crash is counted for a claim that expired while it ran alone in another process, and for no other
/// (failure mode 23).
pub async fn only_a_death_alone_counts_a_crash<T: StoreUnderTest>(subject: &T) {
    for (mode, taker, crashes, suspect) in [
        (Mode::Normal, B, 0, true),
        (Mode::Suspect, B, 0, true),
        (Mode::Alone, B, 1, true),
        (Mode::Normal, A, 0, false),
        (Mode::Suspect, A, 0, true),
        (Mode::Alone, A, 0, true),
    ] {
        let case = Case::new(subject, "only_a_death_alone_counts_a_crash").await;
        let first = case.claimed(case.ask(A, 1)).await;
        case.held(&first, 0, mode).await;
        case.pass(1.5).await;
        let next = case.claimed(case.ask(taker, 2)).await;
        let who = if taker == A { "the same process" } else { "another process" };
        let got = (next.crashes, next.suspect);
        assert_eq!(got, (crashes, suspect), "crashes and suspicion after {mode:?} expired, taken by {who}");
        assert_eq!(next.epoch, first.epoch + 1, "every claim adds one epoch");
    }
    let case = Case::new(subject, "only_a_death_alone_counts_a_crash").await;
    for n in 0..3_u32 {
        let claim = case.claimed(case.ask(u128::from(n) + 100, 1)).await;
        assert_eq!(claim.crashes, n, "crashes add up");
        case.held(&claim, 0, Mode::Alone).await;
        case.pass(1.5).await;
    }
}

/// Being returned does not clear a suspect; a failure does, and so does having run beside others.
pub async fn a_suspect_stays_one_until_it_fails_or_runs_normally<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_suspect_stays_one_until_it_fails_or_runs_normally").await;
    case.claimed(case.ask(A, 1)).await;
    case.pass(1.5).await;
    let suspect = case.claimed(case.ask(B, 1)).await;
    case.apply(&suspect, Resolution::Returned { attempts: 0 }).await;
    let again = case.claimed(case.ask(A, 2)).await;
    assert!(again.suspect, "a returned suspect is still one");
    case.held(&again, 0, Mode::Normal).await;
    case.apply(&again, Resolution::Returned { attempts: 0 }).await;
    let normal = case.claimed(case.ask(A, 3)).await;
    assert!(!normal.suspect, "it ran beside others and nobody died");
    case.held(&normal, 0, Mode::Alone).await;
    case.apply(&normal, Resolution::Failed { attempts: 1 }).await;
    let failed = case.claimed(case.ask(B, 3)).await;
    assert!(!failed.suspect, "its call ended with a failure, not with a death");
}

/// The record of an expired claim lives for its grace; what comes later is fresh, with a greater epoch.
pub async fn an_expired_claim_is_forgotten_after_its_grace<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "an_expired_claim_is_forgotten_after_its_grace").await;
    let first = case.claimed(ClaimRequest { grace: case.lease(), attempt: 3, ..case.ask(A, 1) }).await;
    case.pass(2.5).await;
    let second = case.claimed(ClaimRequest { fingerprint: Some(2), ..case.ask(B, 1) }).await;
    assert!(second.epoch > first.epoch, "epochs grow beyond the life of a record");
    assert_eq!((second.attempts, second.suspect, second.fingerprint), (0, false, Some(2)), "it is fresh");
}

/// A renewal holds for another lease and carries the failed calls (failure mode 30).
pub async fn a_renewal_prolongs_and_reports_attempts<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_renewal_prolongs_and_reports_attempts").await;
    let first = case.claimed(case.ask(A, 1)).await;
    for attempts in [1, 2, 0] {
        case.pass(0.7).await;
        case.held(&first, attempts, Mode::Normal).await;
    }
    case.expect_busy(case.ask(B, 1), "it was renewed").await;
    case.pass(1.5).await;
    let second = case.claimed(case.ask(B, 2)).await;
    assert_eq!(second.attempts, 2, "a killed process loses only the attempts since its last renewal");
    assert_eq!(second.epoch, first.epoch + 1, "renewals add no epoch");
}

/// A batch of renewals is answered in the order it was asked in.
pub async fn renewals_are_answered_in_their_order<T: StoreUnderTest>(subject: &T) {
    use consumer_core::dedup::{DedupStore, RenewRequest};
    let case = Case::new(subject, "renewals_are_answered_in_their_order").await;
    let mut requests = Vec::new();
    let mut expected = Vec::new();
    for n in 0..60_u64 {
        let one = case.other(case.key.scope(), n.to_string());
        let claim = one.claimed(one.ask(A, n)).await;
        expected.push(match n % 3 {
            0 => Renewal::Held,
            1 => {
                one.apply(&claim, Resolution::Failed { attempts: 1 }).await;
                Renewal::Lost
            }
            _ => {
                one.apply(&claim, Resolution::Completed).await;
                Renewal::Completed
            }
        });
        requests.push(RenewRequest { claim, attempts: 0, mode: Mode::Normal });
    }
    let answers = case.store.renew(requests).await.expect("renewals are answered");
    assert_eq!(answers, expected, "renewals_are_answered_in_their_order");
    let none = case.store.renew(Vec::new()).await.expect("no renewals are answered");
    assert!(none.is_empty(), "no renewals have no answers");
}

/// An owner that has lost its claim can neither renew nor release it (failure mode 04).
pub async fn only_the_owner_renews_and_releases<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "only_the_owner_renews_and_releases").await;
    let stalled = case.claimed(case.ask(A, 1)).await;
    case.pass(1.5).await;
    let owner = case.claimed(case.ask(B, 1)).await;
    for resolution in [
        Resolution::Returned { attempts: 9 },
        Resolution::Failed { attempts: 9 },
        Resolution::DeadLettered,
        Resolution::Deferred { attempt: 9 },
    ] {
        let resolved = case.resolve(&stalled, resolution).await;
        assert_eq!(resolved, Resolved::NotOwner, "{resolution:?} by one who is not the owner");
    }
    assert_eq!(case.renew(&stalled, 9, Mode::Alone).await, Renewal::Lost, "a lost claim is not renewed");
    case.held(&owner, 0, Mode::Normal).await;
    case.expect_busy(case.ask(A, 2), "the owner still holds it").await;
    case.apply(&owner, Resolution::Returned { attempts: 0 }).await;
    assert_eq!(case.renew(&owner, 9, Mode::Normal).await, Renewal::Lost, "a released claim is not renewed");
    let next = case.claimed(case.ask(A, 3)).await;
    assert_eq!((next.attempts, next.suspect), (0, false), "nothing of it was recorded");

    let case = Case::new(subject, "only_the_owner_renews_and_releases").await;
    let unknown = case.claimed(ClaimRequest { grace: case.lease() / 2, ..case.ask(A, 1) }).await;
    case.pass(2.0).await;
    assert_eq!(case.renew(&unknown, 0, Mode::Normal).await, Renewal::Lost, "a forgotten claim is lost");
    let resolved = case.resolve(&unknown, Resolution::Failed { attempts: 1 }).await;
    assert_eq!(resolved, Resolved::NotOwner, "a forgotten claim is nobody's");
}

/// A stalled owner that succeeds after all is recorded, whatever happened meanwhile (failure mode 05).
pub async fn a_late_completion_is_recorded_as_an_overlap<T: StoreUnderTest>(subject: &T) {
    let rule = "a_late_completion_is_recorded_as_an_overlap";
    for meanwhile in [
        None,
        Some(Resolution::Returned { attempts: 0 }),
        Some(Resolution::Failed { attempts: 1 }),
        Some(Resolution::DeadLettered),
        Some(Resolution::Deferred { attempt: 2 }),
    ] {
        let case = Case::new(subject, rule).await;
        let stalled = case.claimed(case.ask(A, 1)).await;
        case.pass(1.5).await;
        let owner = case.claimed(case.ask(B, 1)).await;
        if let Some(resolution) = meanwhile {
            case.apply(&owner, resolution).await;
        }
        let resolved = case.resolve(&stalled, Resolution::Completed).await;
        assert_eq!(resolved, Resolved::Overlapped, "{rule}: after {meanwhile:?} by the new owner");
        assert_eq!(case.renew(&owner, 0, Mode::Normal).await, Renewal::Completed, "{rule}: the owner learns");
        let resolved = case.resolve(&owner, Resolution::Completed).await;
        assert_eq!(resolved, Resolved::AlreadyCompleted, "{rule}: the new owner completes as well");
        case.expect(case.ask(A, 9), ClaimReply::Completed, "it stays completed").await;
    }
    let case = Case::new(subject, rule).await;
    let expired = case.claimed(case.ask(A, 1)).await;
    case.pass(1.5).await;
    let resolved = case.resolve(&expired, Resolution::Completed).await;
    assert_eq!(resolved, Resolved::Applied, "{rule}: nobody else has run it");
}

/// A completion is recorded though the claim's record is gone.
pub async fn a_completion_without_a_record_is_applied<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_completion_without_a_record_is_applied").await;
    let claim = case.claimed(ClaimRequest { grace: case.lease() / 2, ..case.ask(A, 1) }).await;
    case.pass(2.0).await;
    case.apply(&claim, Resolution::Completed).await;
    case.expect(case.ask(B, 1), ClaimReply::Completed, "it is recorded").await;
    let other = ClaimRequest { fingerprint: Some(2), ..case.ask(B, 2) };
    case.expect(other, ClaimReply::Conflict, "with the fingerprint of the claim").await;
}
