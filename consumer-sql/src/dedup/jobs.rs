//! What the handles ask of the driver.

use std::time::Duration;

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution, Resolved,
    StoreError,
};
use tokio::sync::oneshot;

use super::record::{Kept, Row};

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Job {
    Claim(ClaimRequest, Answer<ClaimReply>),
    Resolve(Resolving, Answer<Resolved>),
    Renew(Renewing, Answer<Vec<Renewal>>),
    Park(ParkRequest, Answer<ParkReply>),
    Flush(Answer<()>),
}

pub(super) struct Resolving {
    pub(super) claim: Claim,
    pub(super) resolution: Resolution,
    pub(super) lifetime: Duration,
    /// Of a write of which nobody knows whether it has happened: what would have been answered, and what is found if it
    /// has.
    pub(super) tried: Option<Box<(Resolved, Row<Kept>)>>,
}

pub(super) struct Renewing {
    pub(super) requests: Vec<RenewRequest>,
    /// Those that are known.
    pub(super) renewals: Vec<Option<Renewal>>,
}

impl Renewing {
    pub(super) fn new(requests: Vec<RenewRequest>) -> Self {
        Self { renewals: vec![None; requests.len()], requests }
    }
}

/// The keys that something is about, each once, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) states: Vec<u128>,
    pub(super) parked: Vec<u128>,
}

impl Keys {
    /// One of each kind, which nobody has.
    #[cfg(feature = "postgres")]
    pub(super) fn one() -> Self {
        Self { states: vec![0], parked: vec![0] }
    }

    pub(super) fn of<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Self {
        let mut keys = Self::default();
        for job in jobs {
            match job {
                Job::Claim(request, _) => keys.states.push(request.key.hash()),
                Job::Resolve(resolving, _) => keys.states.push(resolving.claim.key.hash()),
                Job::Renew(renewing, _) => {
                    keys.states.extend(renewing.requests.iter().map(|request| request.claim.key.hash()));
                }
                Job::Park(request, _) => keys.parked.push(request.key.hash()),
                Job::Flush(_) => {}
            }
        }
        for list in [&mut keys.states, &mut keys.parked] {
            list.sort_unstable();
            list.dedup();
        }
        keys
    }

    pub(super) fn has_state(&self, hash: u128) -> bool {
        self.states.binary_search(&hash).is_ok()
    }

    pub(super) fn has_parked(&self, hash: u128) -> bool {
        self.parked.binary_search(&hash).is_ok()
    }
}

impl Job {
    /// After an outage what has happened is still to be recorded; who asks is told that it may not have been done.
    pub(super) fn survives(self, error: &str) -> Option<Self> {
        match self {
            Self::Claim(_, answer) => drop(answer.send(Err(StoreError::new(error)))),
            Self::Renew(_, answer) => drop(answer.send(Err(StoreError::new(error)))),
            Self::Park(_, answer) => drop(answer.send(Err(StoreError::new(error)))),
            job @ (Self::Resolve(..) | Self::Flush(_)) => return Some(job),
        }
        None
    }
}
