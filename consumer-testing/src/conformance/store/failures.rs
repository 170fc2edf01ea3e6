//! What becomes of a claim that did not succeed.

use consumer_core::dedup::{ClaimReply, ClaimRequest, Mode, Resolution};

use super::{A, B, Case, StoreUnderTest};

/// Shutdown and rebalance count nothing, however often (failure mode 39), but keep what had failed before.
pub async fn a_returned_claim_counts_nothing<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_returned_claim_counts_nothing").await;
    let mut last = case.claimed(case.ask(A, 0)).await;
    for n in 1..10 {
        case.apply(&last, Resolution::Returned { attempts: last.attempts }).await;
        let next = case.claimed(case.ask(B, n)).await;
        assert_eq!(next.epoch, last.epoch + 1, "a_returned_claim_counts_nothing: every claim adds one epoch");
        assert_eq!((next.attempts, next.crashes, next.suspect), (0, 0, false), "returning counts nothing");
        last = next;
    }
    case.apply(&last, Resolution::Returned { attempts: 2 }).await;
    let next = case.claimed(case.ask(A, 20)).await;
    assert_eq!(next.attempts, 2, "a_returned_claim_counts_nothing: calls that failed before it are kept");
}

/// Failed calls are kept, and a lower report never takes them back.
pub async fn a_failed_claim_keeps_its_attempts<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_failed_claim_keeps_its_attempts").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.apply(&first, Resolution::Failed { attempts: 3 }).await;
    let second = case.claimed(case.ask(B, 1)).await;
    assert_eq!(second.epoch, first.epoch + 1, "every claim adds one epoch");
    assert_eq!((second.attempts, second.suspect), (3, false), "failed calls are kept");
    case.apply(&second, Resolution::Failed { attempts: 1 }).await;
    let third = case.claimed(case.ask(A, 2)).await;
    assert_eq!(third.attempts, 3, "a_failed_claim_keeps_its_attempts: attempts never go down");
}

/// A failed message that was corrected and sent again under its key runs, from the start (failure mode 38).
pub async fn a_released_key_takes_a_corrected_payload<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_released_key_takes_a_corrected_payload").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.apply(&first, Resolution::Failed { attempts: 3 }).await;
    let corrected = case.claimed(ClaimRequest { fingerprint: Some(2), ..case.ask(B, 1) }).await;
    assert_eq!(corrected.epoch, first.epoch + 1, "the epoch goes on");
    assert_eq!(corrected.attempts, 0, "what the old payload did is not held against the new one");
    assert_eq!(corrected.fingerprint, Some(2), "the key stands for the new payload");
    case.apply(&corrected, Resolution::Completed).await;
    case.expect(case.ask(A, 2), ClaimReply::Conflict, "the old payload has become the other one").await;
}

/// A dead-lettered message is superseded until it is redriven (failure modes 09 and 33).
pub async fn a_dead_letter_supersedes_all_but_a_redrive<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_dead_letter_supersedes_all_but_a_redrive").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.held(&first, 3, Mode::Normal).await;
    case.apply(&first, Resolution::DeadLettered).await;
    case.expect(case.ask(B, 1), ClaimReply::DeadLettered, "a duplicate").await;
    let copy = ClaimRequest { attempt: 5, ..case.ask(B, 2) };
    case.expect(copy, ClaimReply::DeadLettered, "a delayed copy").await;
    let redriven = case.claimed(ClaimRequest { redrive: 1, ..case.ask(B, 3) }).await;
    assert_eq!(redriven.epoch, first.epoch + 1, "the epoch goes on");
    assert_eq!((redriven.attempts, redriven.crashes, redriven.redrive), (0, 0, 1), "it starts anew");
    case.apply(&redriven, Resolution::DeadLettered).await;
    let same = ClaimRequest { redrive: 1, ..case.ask(A, 4) };
    case.expect(same, ClaimReply::DeadLettered, "a duplicate of the redrive").await;
    let next = case.claimed(ClaimRequest { redrive: 2, ..case.ask(A, 5) }).await;
    case.apply(&next, Resolution::Completed).await;
    case.expect(case.ask(A, 6), ClaimReply::Completed, "in the end").await;
}

/// A dead-lettered message that was corrected and sent again runs without a redrive (failure mode 38).
pub async fn a_dead_lettered_key_takes_a_corrected_payload<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_dead_lettered_key_takes_a_corrected_payload").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.apply(&first, Resolution::DeadLettered).await;
    let corrected = case.claimed(ClaimRequest { fingerprint: Some(2), ..case.ask(B, 1) }).await;
    assert_eq!(corrected.epoch, first.epoch + 1, "the epoch goes on");
    assert_eq!(corrected.fingerprint, Some(2), "the key stands for the new payload");
}

/// Once a delayed copy is confirmed, only that copy (or a later one) runs (failure modes 10 and 34).
pub async fn a_deferred_key_waits_for_its_copy<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_deferred_key_waits_for_its_copy").await;
    let first = case.claimed(case.ask(A, 1)).await;
    let early = ClaimRequest { attempt: 4, ..case.ask(B, 0) };
    case.expect_busy(early.clone(), "a copy that comes before it is recorded").await;
    case.apply(&first, Resolution::Deferred { attempt: 4 }).await;
    case.expect(case.ask(B, 1), ClaimReply::Superseded, "the original").await;
    let third = ClaimRequest { attempt: 3, ..case.ask(B, 2) };
    case.expect(third, ClaimReply::Superseded, "an earlier copy").await;
    let copy = case.claimed(early).await;
    assert_eq!((copy.epoch, copy.attempts), (first.epoch + 1, 3), "the copy has its own attempt");
    assert!(!copy.suspect, "a deferred message is no suspect");
    case.apply(&copy, Resolution::Deferred { attempt: 5 }).await;
    let later = case.claimed(ClaimRequest { attempt: 6, ..case.ask(A, 2) }).await;
    assert_eq!(later.attempts, 5, "a later copy than the recorded one runs as well");
}

/// A redrive runs though a copy is on its way.
pub async fn a_deferred_key_takes_a_redrive<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_deferred_key_takes_a_redrive").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.apply(&first, Resolution::Deferred { attempt: 4 }).await;
    let redriven = case.claimed(ClaimRequest { redrive: 1, ..case.ask(B, 1) }).await;
    assert_eq!((redriven.epoch, redriven.attempts), (first.epoch + 1, 0), "it starts anew");
}

/// A copy that meets a fresh key has not lost its count.
pub async fn a_copy_brings_its_attempts_along<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_copy_brings_its_attempts_along").await;
    let copy = case.claimed(ClaimRequest { attempt: 4, ..case.ask(A, 1) }).await;
    assert_eq!(copy.attempts, 3, "a copy with attempt 4 has failed three times");
    case.apply(&copy, Resolution::Returned { attempts: 3 }).await;
    let next = case.claimed(ClaimRequest { attempt: 6, ..case.ask(A, 2) }).await;
    assert_eq!(next.attempts, 5, "a copy that knows of more counts");
}

/// Attempts and crashes end with a redrive that was not seen before.
pub async fn a_redrive_starts_counting_anew<T: StoreUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_redrive_starts_counting_anew").await;
    let first = case.claimed(case.ask(A, 1)).await;
    case.apply(&first, Resolution::Failed { attempts: 7 }).await;
    let redriven = case.claimed(ClaimRequest { redrive: 2, ..case.ask(B, 1) }).await;
    assert_eq!((redriven.epoch, redriven.attempts), (first.epoch + 1, 0), "a new redrive starts anew");
    case.apply(&redriven, Resolution::Failed { attempts: 2 }).await;
    let old = case.claimed(ClaimRequest { redrive: 1, ..case.ask(B, 2) }).await;
    assert_eq!((old.attempts, old.redrive), (2, 2), "an older one does not");
}
