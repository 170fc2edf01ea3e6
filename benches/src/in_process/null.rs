//! A store and a publisher that answer at once and keep nothing.

use std::{
    future::{Future, ready},
    time::Duration,
};

use consumer_core::{
    Outgoing, PublishError, Publisher,
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal,
        Resolution, Resolved, StoreError,
    },
};

/// Grants every claim.
#[derive(Debug, Clone, Copy)]
pub(super) struct NullStore;

impl DedupStore for NullStore {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        ready(Ok(ClaimReply::Claimed(Claim {
            key: request.key,
            owner: request.owner,
            epoch: 1,
            attempts: 0,
            crashes: 0,
            suspect: false,
            fingerprint: request.fingerprint,
            redrive: request.redrive,
            lease: request.lease,
            grace: request.grace,
        })))
    }

    fn resolve(
        &self,
        _: Claim,
        _: Resolution,
        _: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        ready(Ok(Resolved::Applied))
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        ready(Ok(vec![Renewal::Held; requests.len()]))
    }

    fn park(
        &self,
        _: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        ready(Ok(ParkReply::Free))
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        ready(Ok(()))
    }
}

/// Confirms every publish.
#[derive(Debug, Clone, Copy)]
pub(super) struct NullPublisher;

impl Publisher for NullPublisher {
    fn publish(
        &self,
        _: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        ready(Ok(()))
    }
}
