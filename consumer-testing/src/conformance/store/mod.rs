//! What every dedup store has to do: each transition of the protocol and of parking, seen from outside.

mod claims;
mod contract;
mod failures;
mod parking;
mod takeover;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
    StoreKey,
};

pub use claims::*;
pub use contract::*;
pub use failures::*;
pub use parking::*;
pub use takeover::*;

/// A store to be tested.
pub trait StoreUnderTest: Sync {
    /// Its type.
    type Store: DedupStore;

    /// A handle to the store. Every rule uses keys of its own, so that all handles may share one database.
    fn store(&self) -> impl Future<Output = Self::Store> + Send;

    /// Lets this much time pass for the store. The default waits on tokio's clock, which serves a store on the paused
    /// clock and one that keeps real time.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    /// The lease of the claims; 1 s by default. The rules wait for a few of them, and expect the store to answer well
    /// within a quarter.
    fn lease(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Runs every rule.
///
/// # Panics
/// When one is broken, with its name.
pub async fn run_all<T: StoreUnderTest>(subject: &T) {
    macro_rules! rules {
        ($($rule:ident)*) => {
            $(
                tracing::debug!(rule = stringify!($rule), "store conformance");
                $rule(subject).await;
            )*
        };
    }
    rules! {
        a_fresh_key_is_claimed
        another_owner_finds_it_busy
        a_claim_recognises_its_own_nonce
        scopes_and_keys_are_kept_apart
        keys_may_hold_any_bytes
        completed_is_absorbing
        completed_ends_with_its_retention_and_the_epoch_goes_on
        another_payload_is_a_conflict
        an_unknown_fingerprint_equals_all
        one_of_many_concurrent_claims_wins
        a_completion_is_never_undone_by_concurrent_claims
        a_returned_claim_counts_nothing
        a_failed_claim_keeps_its_attempts
        a_released_key_takes_a_corrected_payload
        a_dead_letter_supersedes_all_but_a_redrive
        a_dead_lettered_key_takes_a_corrected_payload
        a_deferred_key_waits_for_its_copy
        a_deferred_key_takes_a_redrive
        a_copy_brings_its_attempts_along
        a_redrive_starts_counting_anew
        an_expired_claim_is_taken_over_as_a_suspect
        an_expired_claim_of_ones_own_process_is_no_suspect
        only_a_death_alone_counts_a_crash
        a_suspect_stays_one_until_it_fails_or_runs_normally
        an_expired_claim_is_forgotten_after_its_grace
        a_renewal_prolongs_and_reports_attempts
        renewals_are_answered_in_their_order
        only_the_owner_renews_and_releases
        a_late_completion_is_recorded_as_an_overlap
        a_completion_without_a_record_is_applied
        a_key_is_free_until_a_message_of_it_is_deferred
        messages_of_a_parked_key_have_their_turn_in_order
        asking_twice_about_a_parked_key_changes_nothing
        so_many_and_no_more_are_parked
        those_behind_learn_how_long_the_first_one_waits
        parked_keys_are_kept_apart
        a_first_message_that_never_comes_back_frees_its_key
        operations_happen_though_their_futures_are_dropped
        a_store_that_is_up_says_so
    }
}

/// The first process of a rule.
const A: u128 = 0xA;
/// Another one.
const B: u128 = 0xB;

/// One rule at work on one key.
struct Case<'a, T: StoreUnderTest> {
    subject: &'a T,
    store: T::Store,
    key: StoreKey,
    rule: &'static str,
}

impl<'a, T: StoreUnderTest> Case<'a, T> {
    async fn new(subject: &'a T, rule: &'static str) -> Self {
        let key = StoreKey::new(crate::unique("conformance").into(), Bytes::from_static(b"key"));
        Self { subject, store: subject.store().await, key, rule }
    }

    /// The same store and another key.
    fn other(&self, scope: &str, key: impl Into<Bytes>) -> Self {
        let key = StoreKey::new(scope.into(), key.into());
        Self { subject: self.subject, store: self.store.clone(), key, rule: self.rule }
    }

    fn lease(&self) -> Duration {
        self.subject.lease()
    }

    fn retention(&self) -> Duration {
        self.lease() * 100
    }

    async fn pass(&self, leases: f64) {
        self.subject.pass(self.lease().mul_f64(leases)).await;
    }

    fn ask(&self, process: u128, seq: u64) -> ClaimRequest {
        ClaimRequest {
            key: self.key.clone(),
            owner: Owner { process, seq },
            fingerprint: Some(1),
            lease: self.lease(),
            grace: self.lease() * 100,
            attempt: 1,
            redrive: 0,
        }
    }

    async fn answer(&self, request: ClaimRequest) -> ClaimReply {
        let rule = self.rule;
        self.store.claim(request).await.unwrap_or_else(|error| panic!("{rule}: claim failed: {error}"))
    }

    async fn claimed(&self, request: ClaimRequest) -> Claim {
        let rule = self.rule;
        match self.answer(request.clone()).await {
            ClaimReply::Claimed(claim) => {
                assert_eq!(claim.key, request.key, "{rule}: a claim names the key it was asked for");
                assert_eq!(claim.owner, request.owner, "{rule}: a claim names its owner");
                claim
            }
            other => panic!("{rule}: expected a claim for {request:?}, got {other:?}"),
        }
    }

    async fn expect(&self, request: ClaimRequest, expected: ClaimReply, why: &str) {
        let rule = self.rule;
        assert_eq!(self.answer(request).await, expected, "{rule}: {why}");
    }

    async fn expect_busy(&self, request: ClaimRequest, why: &str) -> Duration {
        match self.answer(request).await {
            ClaimReply::Busy { remaining } => remaining,
            other => panic!("{}: {why}: expected busy, got {other:?}", self.rule),
        }
    }

    async fn resolve(&self, claim: &Claim, resolution: Resolution) -> Resolved {
        self.resolve_for(claim, resolution, self.retention()).await
    }

    async fn resolve_for(&self, claim: &Claim, resolution: Resolution, lifetime: Duration) -> Resolved {
        let rule = self.rule;
        let resolved = self.store.resolve(claim.clone(), resolution, lifetime).await;
        resolved.unwrap_or_else(|error| panic!("{rule}: resolve failed: {error}"))
    }

    async fn apply(&self, claim: &Claim, resolution: Resolution) {
        let rule = self.rule;
        let resolved = self.resolve(claim, resolution).await;
        assert_eq!(resolved, Resolved::Applied, "{rule}: {resolution:?} by the owner is applied");
    }

    async fn renew(&self, claim: &Claim, attempts: u32, mode: Mode) -> Renewal {
        let rule = self.rule;
        let request = RenewRequest { claim: claim.clone(), attempts, mode };
        let answer = self.store.renew(vec![request]).await;
        let renewals = answer.unwrap_or_else(|error| panic!("{rule}: renew failed: {error}"));
        assert_eq!(renewals.len(), 1, "{rule}: one answer for each claim");
        renewals[0]
    }

    async fn held(&self, claim: &Claim, attempts: u32, mode: Mode) {
        let rule = self.rule;
        assert_eq!(
            self.renew(claim, attempts, mode).await,
            Renewal::Held,
            "{rule}: the owner's renewal holds"
        );
    }
}
