//! The claims of this process: who works on a key here, until when, and how often its calls have failed.
//!
//! One entry for each key, from before the store is asked until the store has recorded what became of the claim. It
//! serves four purposes with one lock: duplicates in this process wait for it, the renewal task finds what to renew,
//! the handler learns that its claim ran out, and retries report their failed calls.

mod asking;
mod handle;
mod held;

use std::{
    collections::{HashMap, hash_map},
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, PoisonError, atomic::AtomicU64},
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    gate::{Gate, Pass},
    meter::Meter,
    renewal,
    store::{
        Claim, ClaimRequest, DedupStore, DynStore, Mode, Owner, RenewRequest, Renewal, StoreError, StoreKey,
    },
};
use crate::sync::{
    self, Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};
pub(super) use asking::Asking;
pub(crate) use handle::ClaimHandle;
pub(super) use held::Settled;
pub(crate) use held::{HeldClaim, SharedClaim};

pub(crate) struct Registry {
    process: u128,
    pub(super) store: DynStore,
    pub(super) gate: Gate,
    pub(super) retention: Duration,
    meter: Meter,
    entries: Mutex<Entries>,
    pub(super) wake_renewer: Arc<Notify>,
    /// Claims that are on their way back although nobody knows yet whether they were granted.
    handing_back: AtomicUsize,
    handed_back: Notify,
}

/// Owners are unique in the process, whatever layer they come from.
static NEXT_SEQ: AtomicU64 = AtomicU64::new(1);

#[derive(Default)]
struct Entries {
    by_key: HashMap<u128, Entry, foldhash::fast::RandomState>,
    renewer: Renewer,
}

/// The renewal task.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewer {
    #[default]
    None,
    Running,
    /// Parked until a claim is made.
    Idle,
}

struct Entry {
    seq: u64,
    request: ClaimRequest,
    /// None until the store has granted it.
    granted: Option<Granted>,
    attempts: u32,
    mode: Mode,
    pass: Pass,
    deadline: Instant,
    lost: bool,
    /// In a failure on its way: there is no handler to stop, so the claim is renewed until the store says it is lost.
    travels: bool,
    handler: Option<Waker>,
    joined: Vec<Waker>,
}

/// What a claim has beyond its request.
#[derive(Clone, Copy)]
struct Granted {
    epoch: u64,
    attempts: u32,
    crashes: u32,
    suspect: bool,
    fingerprint: Option<u128>,
    redrive: u32,
}

/// An entry that was not there before: this caller works on the key.
pub(crate) struct Ticket {
    registry: Arc<Registry>,
    hash: u128,
    seq: u64,
}

impl Registry {
    pub(super) fn new(
        process: u128,
        store: DynStore,
        gate: Gate,
        retention: Duration,
        meter: Meter,
    ) -> Arc<Self> {
        Arc::new(Self {
            process,
            store,
            gate,
            retention,
            meter,
            entries: Mutex::default(),
            wake_renewer: Arc::default(),
            handing_back: AtomicUsize::new(0),
            handed_back: Notify::new(),
        })
    }

    /// Waits until the store has answered all that it was asked, and what was to be handed back is.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        loop {
            let mut handed_back = pin!(self.handed_back.notified());
            handed_back.as_mut().enable();
            if self.handing_back.load(Ordering::Acquire) == 0 {
                break;
            }
            handed_back.await;
        }
        self.store.flush().await
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody in this process works on the key, then enters it.
    pub(super) async fn enter(self: &Arc<Self>, request: &mut ClaimRequest) -> Ticket {
        poll_fn(|cx| {
            if let Some(ticket) = self.try_enter(request, sync::now()) {
                return Poll::Ready(ticket);
            }
            let mut entries = self.lock();
            let Some(entry) = entries.by_key.get_mut(&request.key.hash()) else {
                // Left between the two looks.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            entry.join(cx.waker());
            Poll::Pending
        })
        .await
    }

    /// As [`enter`](Self::enter), if that needs no waiting. Names the owner in the request.
    pub(super) fn try_enter(self: &Arc<Self>, request: &mut ClaimRequest, now: Instant) -> Option<Ticket> {
        let hash = request.key.hash();
        let mut entries = self.lock();
        let hash_map::Entry::Vacant(vacant) = entries.by_key.entry(hash) else { return None };
        request.owner = self.next_owner();
        let seq = request.owner.seq;
        vacant.insert(Entry::new(request.clone(), now));
        drop(entries);
        Some(Ticket { registry: self.clone(), hash, seq })
    }

    /// An entry under no key of a message: what runs without a claim has its place in the gate there.
    pub(super) fn aside(self: &Arc<Self>) -> Ticket {
        let owner = self.next_owner();
        let request = ClaimRequest {
            key: StoreKey::new("\0aside".into(), owner.seq.to_le_bytes().to_vec().into()),
            owner,
            fingerprint: None,
            lease: Duration::ZERO,
            grace: Duration::ZERO,
            attempt: 1,
            redrive: 0,
        };
        let (hash, seq) = (request.key.hash(), owner.seq);
        self.lock().by_key.insert(hash, Entry::new(request, sync::now()));
        Ticket { registry: self.clone(), hash, seq }
    }

    fn next_owner(&self) -> Owner {
        Owner { process: self.process, seq: NEXT_SEQ.fetch_add(1, Ordering::Relaxed) }
    }

    /// The claims whose deadline is not after `until`, and the first deadline of all. With no claim at all, the task
    /// is put down as idle.
    pub(super) fn due(&self, until: Instant) -> (Vec<RenewRequest>, Option<Instant>) {
        let mut entries = self.lock();
        let mut requests = Vec::new();
        let mut first: Option<Instant> = None;
        for entry in entries.by_key.values().filter(|entry| !entry.lost) {
            if entry.granted.is_none() {
                continue;
            }
            first = Some(first.map_or(entry.deadline, |at| at.min(entry.deadline)));
            if entry.deadline <= until {
                requests.extend(entry.renewal(entry.mode));
            }
        }
        entries.renewer = if first.is_some() { Renewer::Running } else { Renewer::Idle };
        (requests, first)
    }

    pub(super) fn renewer_ended(&self) {
        self.lock().renewer = Renewer::None;
    }

    /// Applies the answers to renewals that were sent at `sent`.
    pub(super) fn renewed(&self, requests: &[RenewRequest], replies: &[Renewal], sent: Instant) {
        let mut entries = self.lock();
        for (request, reply) in requests.iter().zip(replies) {
            let Some(entry) = entries.by_key.get_mut(&request.claim.key.hash()) else { continue };
            if entry.seq != request.claim.owner.seq {
                continue;
            }
            match reply {
                Renewal::Held => entry.deadline = deadline(sent, request.claim.lease),
                Renewal::Lost | Renewal::Completed => entry.lose(),
                Renewal::Unanswered => {}
            }
        }
    }

    /// Cancels every handler whose deadline has passed.
    pub(super) fn expire(&self, now: Instant) {
        let mut entries = self.lock();
        for entry in entries.by_key.values_mut() {
            if entry.granted.is_some() && !entry.lost && !entry.travels && entry.deadline <= now {
                entry.lose();
            }
        }
    }

    fn remove(&self, hash: u128, seq: u64) {
        let mut entries = self.lock();
        if entries.by_key.get(&hash).is_none_or(|entry| entry.seq != seq) {
            return;
        }
        let Some(mut entry) = entries.by_key.remove(&hash) else { return };
        drop(entries);
        self.gate.leave(std::mem::replace(&mut entry.pass, Pass::Outside));
        for waker in entry.joined {
            waker.wake();
        }
    }
}

/// The task sees that nobody needs it any more.
impl Drop for Registry {
    fn drop(&mut self) {
        self.wake_renewer.notify_one();
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("claims", &self.lock().by_key.len()).finish_non_exhaustive()
    }
}

/// The client stops a tenth of the lease before the store would give the key away.
fn deadline(sent: Instant, lease: Duration) -> Instant {
    sent + lease - lease / 10
}

impl Entry {
    fn new(request: ClaimRequest, now: Instant) -> Self {
        Self {
            seq: request.owner.seq,
            request,
            granted: None,
            attempts: 0,
            mode: Mode::Normal,
            pass: Pass::Outside,
            deadline: now,
            lost: false,
            travels: false,
            handler: None,
            joined: Vec::new(),
        }
    }

    /// None until the store has granted it.
    fn claim(&self) -> Option<Claim> {
        self.granted.map(|granted| Claim {
            key: self.request.key.clone(),
            owner: self.request.owner,
            epoch: granted.epoch,
            attempts: granted.attempts,
            crashes: granted.crashes,
            suspect: granted.suspect,
            fingerprint: granted.fingerprint,
            redrive: granted.redrive,
            lease: self.request.lease,
            grace: self.request.grace,
        })
    }

    fn renewal(&self, mode: Mode) -> Option<RenewRequest> {
        self.claim().map(|claim| RenewRequest { claim, attempts: self.attempts, mode })
    }

    /// Wakes when the entry goes.
    fn join(&mut self, waker: &Waker) {
        if !self.joined.iter().any(|joined| joined.will_wake(waker)) {
            self.joined.push(waker.clone());
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        if let Some(waker) = self.handler.take() {
            waker.wake();
        }
    }
}

impl Ticket {
    fn grant(&self, claim: &Claim, sent: Instant, pass: Pass) {
        let mut entries = self.registry.lock();
        if let Some(entry) = entries.by_key.get_mut(&self.hash) {
            entry.attempts = claim.attempts;
            entry.mode = if claim.suspect { Mode::Suspect } else { Mode::Normal };
            entry.pass = pass;
            entry.deadline = deadline(sent, claim.lease);
            entry.granted = Some(Granted {
                epoch: claim.epoch,
                attempts: claim.attempts,
                crashes: claim.crashes,
                suspect: claim.suspect,
                fingerprint: claim.fingerprint,
                redrive: claim.redrive,
            });
        }
        let renewer = std::mem::replace(&mut entries.renewer, Renewer::Running);
        drop(entries);
        match renewer {
            Renewer::Running => {}
            Renewer::Idle => self.registry.wake_renewer.notify_one(),
            Renewer::None => renewal::spawn(&self.registry, claim.lease),
        }
    }

    fn with<T>(&self, apply: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.registry.lock();
        entries.by_key.get_mut(&self.hash).filter(|entry| entry.seq == self.seq).map(apply)
    }
}

impl Ticket {
    fn leave_gate(&self) {
        let pass = self.with(|entry| std::mem::replace(&mut entry.pass, Pass::Outside));
        self.registry.gate.leave(pass.unwrap_or(Pass::Outside));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.remove(self.hash, self.seq);
    }
}

/// The claim ran out or was taken over.
#[derive(Debug)]
pub(crate) struct LostClaim;
