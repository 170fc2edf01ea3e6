//! The claims of this process: who works on a key here, until when, and how often its calls have failed.
//!
//! One entry for each key, from before the store is asked until the store has recorded what became of the claim. It
//! serves four purposes with one lock: duplicates in this process wait for it, the renewal task finds what to renew,
//! the handler learns that its claim ran out, and retries report their failed calls.

use std::{
    collections::{HashMap, hash_map},
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    gate::{Gate, Pass},
    meter::Meter,
    renewal,
    store::{
        Claim, ClaimRequest, DedupStore, DynStore, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
        StoreError, StoreKey,
    },
};
use crate::failure::chain;

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
            if let Some(ticket) = self.try_enter(request, Instant::now()) {
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
        self.lock().by_key.insert(hash, Entry::new(request, Instant::now()));
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
    pub(super) fn handle(&self) -> ClaimHandle {
        ClaimHandle { registry: self.registry.clone(), hash: self.hash, seq: self.seq }
    }

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

/// A claim that is being asked for. Dropped while the answer is unknown, it hands back what may have been granted.
pub(super) struct Asking {
    ticket: Option<Ticket>,
    unknown: bool,
}

impl Asking {
    /// The store is asked at once: until it answers, what it does is unknown.
    pub(super) fn new(ticket: Ticket) -> Self {
        Self { ticket: Some(ticket), unknown: true }
    }

    /// What to ask once more; from here on the answer is unknown.
    pub(super) fn again(&mut self) -> Option<ClaimRequest> {
        self.unknown = true;
        self.ticket.as_ref()?.with(|entry| entry.request.clone())
    }

    /// The store has granted what was asked at `sent`. With `enter`, a place in the gate beside others is taken as
    /// well, if nobody has to be waited for; then the answer is true.
    pub(super) fn granted(mut self, claim: Claim, sent: Instant, enter: bool) -> (HeldClaim, bool) {
        let ticket = self.ticket.take();
        let mut pass = Pass::Outside;
        if let Some(ticket) = &ticket {
            if enter {
                pass = ticket.registry.gate.try_enter().unwrap_or(Pass::Outside);
            }
            ticket.grant(&claim, sent, pass);
        }
        (HeldClaim { claim, hold: Hold { ticket, failed: None } }, pass != Pass::Outside)
    }

    /// Somebody else has it; this one asks again.
    pub(super) fn denied(&mut self) {
        self.unknown = false;
    }

    /// Nothing is left to ask.
    pub(super) fn answered(mut self) {
        self.unknown = false;
    }

    /// Goes on without a claim: the key is free for others in this process at once, whatever the store does.
    pub(super) fn give_up(mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let request = ticket.with(|entry| entry.request.clone());
        let registry = ticket.registry.clone();
        drop(ticket);
        if let Some(request) = request {
            hand_back(registry, request, None);
        }
    }
}

/// Hands back what may have been granted. The entry, if there still is one, stays until that is done.
fn hand_back(registry: Arc<Registry>, request: ClaimRequest, ticket: Option<Ticket>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    registry.handing_back.fetch_add(1, Ordering::AcqRel);
    let counted = HandingBack(registry);
    runtime.spawn(async move {
        let registry = &counted.0;
        // Behind the claim, which may still be on its way: a store keeps no order between what is not answered. Without
        // an answer the claim ends with its lease.
        let _ = registry.store.flush().await;
        let claim = Claim {
            key: request.key,
            owner: request.owner,
            epoch: 0,
            attempts: 0,
            crashes: 0,
            suspect: false,
            fingerprint: request.fingerprint,
            redrive: request.redrive,
            lease: request.lease,
            grace: request.grace,
        };
        let back = Resolution::Returned { attempts: 0 };
        let _ = registry.store.resolve(claim, back, registry.retention).await;
        drop(ticket);
    });
}

/// Counts until dropped.
struct HandingBack(Arc<Registry>);

impl Drop for HandingBack {
    fn drop(&mut self) {
        self.0.handing_back.fetch_sub(1, Ordering::AcqRel);
        self.0.handed_back.notify_waiters();
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take().filter(|_| self.unknown) else { return };
        let Some(request) = ticket.with(|entry| entry.request.clone()) else { return };
        hand_back(ticket.registry.clone(), request, Some(ticket));
    }
}

/// What a message carries inward: lets retries report their failed calls and waiting layers leave the gate.
#[derive(Clone)]
pub(crate) struct ClaimHandle {
    registry: Arc<Registry>,
    hash: u128,
    seq: u64,
}

impl ClaimHandle {
    fn with<T>(&self, apply: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.registry.lock();
        entries.by_key.get_mut(&self.hash).filter(|entry| entry.seq == self.seq).map(apply)
    }

    /// A call of the handler has ended.
    pub(crate) fn count_call(&self, ok: bool) {
        self.registry.meter.called(ok);
    }

    /// Records that so many calls of this message have failed over all processes.
    pub(crate) fn failed_calls(&self, attempts: u32) {
        self.with(|entry| entry.attempts = entry.attempts.max(attempts));
    }

    /// Gives the place in the gate to others. A suspect first tells the store that it is not alone any more, for dying
    /// from then on proves nothing; if the store cannot be told, it stays alone.
    pub(crate) async fn leave_gate(&self) {
        let told = self.with(|entry| match entry.pass {
            Pass::Alone => entry.renewal(Mode::Suspect),
            _ => None,
        });
        if let Some(Some(request)) = told {
            match self.registry.store.renew(vec![request]).await.as_deref() {
                Ok([Renewal::Held]) => {}
                _ => return,
            }
        }
        let pass = self.with(|entry| {
            if entry.pass == Pass::Alone {
                entry.mode = Mode::Suspect;
            }
            std::mem::replace(&mut entry.pass, Pass::Outside)
        });
        self.registry.gate.leave(pass.unwrap_or(Pass::Outside));
    }

    /// Takes a place again. Of a claim that was lost meanwhile the future ends with the claim: whoever runs the handler
    /// drops it.
    pub(crate) async fn enter_gate(&self) {
        if self.with(|entry| entry.pass) != Some(Pass::Outside) {
            return;
        }
        if self.take_place().await.is_err() {
            self.with(Entry::lose);
            self.gone().await;
        }
    }

    /// Waits until the entry is gone.
    async fn gone(&self) {
        poll_fn(|cx| match self.with(|entry| entry.join(cx.waker())) {
            Some(()) => Poll::Pending,
            None => Poll::Ready(()),
        })
        .await
    }

    /// Takes a place in the gate: beside others, or alone for a suspect, which the store is told before it runs. The
    /// entry keeps the place and gives it back however the work ends.
    ///
    /// # Errors
    /// When the claim was lost while waiting.
    pub(super) async fn take_place(&self) -> Result<(), LostClaim> {
        let alone = self.with(|entry| entry.granted.is_some_and(|granted| granted.suspect));
        let alone = alone.ok_or(LostClaim)?;
        let gate = &self.registry.gate;
        let mut entering = pin!(gate.enter(alone));
        let pass = loop {
            // Another wait of the same message may come first: a message has one place, and a suspect that has all of
            // them must not wait for one more.
            let mut taken = pin!(gate.alone());
            taken.as_mut().enable();
            if self.with(|entry| entry.pass).ok_or(LostClaim)? != Pass::Outside {
                return Ok(());
            }
            tokio::select! {
                biased;
                pass = &mut entering => break pass,
                () = taken => {}
            }
        };
        let placed = self.with(|entry| match entry.pass {
            Pass::Outside => (std::mem::replace(&mut entry.pass, pass), entry.lost),
            _ => (pass, entry.lost),
        });
        let (spare, lost) = placed.unwrap_or((pass, true));
        gate.leave(spare);
        if lost {
            return Err(LostClaim);
        }
        if alone {
            gate.is_alone();
            self.announce_alone().await?;
        }
        Ok(())
    }

    /// Tells the store that dying from now on counts as a crash.
    async fn announce_alone(&self) -> Result<(), LostClaim> {
        loop {
            let request = self.with(|entry| entry.renewal(Mode::Alone)).flatten().ok_or(LostClaim)?;
            let pause = request.claim.lease / 20;
            match self.registry.store.renew(vec![request]).await.as_deref() {
                Ok([Renewal::Held]) => {
                    self.with(|entry| entry.mode = Mode::Alone);
                    return Ok(());
                }
                Ok(_) => return Err(LostClaim),
                Err(_) if self.with(|entry| entry.lost) != Some(false) => return Err(LostClaim),
                Err(_) => tokio::time::sleep(pause).await,
            }
        }
    }
}

/// A claim that this process holds and renews until what became of it is recorded.
///
/// Dropped unresolved it records [`Resolution::Returned`], or [`Resolution::Failed`] once it travels in a failure.
pub(crate) struct HeldClaim {
    claim: Claim,
    hold: Hold,
}

/// Answers for the claim until it is resolved. Apart from it, so that the claim can be moved out.
struct Hold {
    ticket: Option<Ticket>,
    failed: Option<u32>,
}

/// What the store did with a claim; the key only where that is worth a word in the log.
pub(super) type Settled = (Result<Resolved, StoreError>, Option<StoreKey>);

impl HeldClaim {
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn handle(&self) -> Option<ClaimHandle> {
        self.hold.ticket.as_ref().map(Ticket::handle)
    }

    /// Failed calls so far, over all processes.
    pub(super) fn attempts(&self) -> u32 {
        self.hold.ticket.as_ref().and_then(|t| t.with(|entry| entry.attempts)).unwrap_or(self.claim.attempts)
    }

    /// Takes a place in the gate, as [`ClaimHandle::take_place`].
    pub(super) async fn enter_gate(&self) -> Result<(), LostClaim> {
        match self.handle() {
            Some(handle) => handle.take_place().await,
            None => Ok(()),
        }
    }

    /// Gives up the place in the gate: the handler does not run any more.
    pub(super) fn leave_gate(&self) {
        if let Some(ticket) = &self.hold.ticket {
            ticket.leave_gate();
        }
    }

    /// Polls the handler, as long as the claim is not lost.
    pub(super) fn poll_run<F: Future>(
        &self,
        inner: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F::Output, LostClaim>> {
        if let Poll::Ready(output) = inner.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let Some(ticket) = &self.hold.ticket else { return Poll::Pending };
        let lost = ticket.with(|entry| {
            if !entry.lost && !entry.handler.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                entry.handler = Some(cx.waker().clone());
            }
            entry.lost
        });
        if lost == Some(false) { Poll::Pending } else { Poll::Ready(Err(LostClaim)) }
    }

    /// From now on the claim belongs to a failure: dropped, it counts `attempts` failed calls.
    pub(super) fn failed(&mut self, attempts: u32) {
        if let Some(ticket) = &self.hold.ticket {
            ticket.with(|entry| {
                entry.attempts = entry.attempts.max(attempts);
                entry.travels = true;
            });
        }
        self.hold.failed = Some(attempts);
    }

    /// Records what became of the claim. Enqueued by the call; the entry stays until the store has answered.
    pub(super) fn resolve<S: DedupStore>(
        mut self,
        store: &S,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Settled> + Send + use<S> {
        let answer = store.resolve(self.claim, resolution, lifetime);
        let settling = Settling(self.hold.ticket.take());
        async move {
            let mut answer = std::pin::pin!(answer);
            let at_once = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
            let answer = match at_once {
                Poll::Ready(answer) => answer,
                Poll::Pending => {
                    settling.leave_gate();
                    answer.await
                }
            };
            let key = if matches!(answer, Ok(Resolved::Applied)) { None } else { settling.key() };
            settling.finish();
            (answer, key)
        }
    }

    /// As [`resolve`](Self::resolve), for layers that do not know the store.
    pub(crate) async fn resolve_failure(self, resolution: Resolution, delay: Duration) {
        let Some(registry) = self.hold.ticket.as_ref().map(|ticket| ticket.registry.clone()) else { return };
        let (answer, key) = self.resolve(&registry.store, resolution, registry.retention + delay).await;
        match answer {
            Ok(Resolved::NotOwner) => {
                tracing::warn!(?key, ?resolution, "claim was lost before its failure was recorded");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(?key, ?resolution, error = %chain(&error), "failure could not be recorded");
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let Some((Some(claim), attempts)) = ticket.with(|entry| (entry.claim(), entry.attempts)) else {
            return;
        };
        let resolution = match self.failed {
            Some(attempts) => Resolution::Failed { attempts },
            None => Resolution::Returned { attempts },
        };
        let registry = &ticket.registry;
        // Enqueued by the call; nobody waits for the answer.
        drop(registry.store.resolve(claim, resolution, registry.retention));
        drop(Settling(Some(ticket)));
    }
}

impl fmt::Debug for HeldClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldClaim").field("claim", &self.claim).finish_non_exhaustive()
    }
}

/// A claim whose resolution is enqueued: its entry goes when the store has answered, whoever drops what.
struct Settling(Option<Ticket>);

impl Settling {
    fn leave_gate(&self) {
        if let Some(ticket) = &self.0 {
            ticket.leave_gate();
        }
    }

    fn key(&self) -> Option<StoreKey> {
        self.0.as_ref()?.with(|entry| entry.request.key.clone())
    }

    fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let Some(ticket) = self.0.take() else { return };
        ticket.leave_gate();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // An error changes nothing here: the claim then ends with its lease.
                let _ = ticket.registry.store.flush().await;
                drop(ticket);
            });
        }
    }
}

/// A claim inside a failure, found again behind foreign wrappers: whoever takes it first resolves it.
#[derive(Debug, Clone)]
pub(crate) struct SharedClaim(Arc<Mutex<Option<HeldClaim>>>);

impl SharedClaim {
    pub(crate) fn new(claim: HeldClaim) -> Self {
        Self(Arc::new(Mutex::new(Some(claim))))
    }

    pub(crate) fn take(&self) -> Option<HeldClaim> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The claim ran out or was taken over.
#[derive(Debug)]
pub(crate) struct LostClaim;
