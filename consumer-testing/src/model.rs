//! Random sequences of what happens to a dedup store, checked twice: against the protocol as a reference, and against
//! invariants that are written down here without it.
//!
//! The invariants, for each key: a completed key stays completed until its retention ends; a claim is granted only
//! when nobody else holds an unexpired one; epochs grow with every claim, beyond the life of a record; a crash is
//! counted only for a claim that expired while it ran alone in another process; what is answered as done or superseded
//! stands for the same payload and has been completed, deferred or dead-lettered before; failed calls are never
//! forgotten. A sequence that breaks one is shrunk and printed.

mod ledger;
mod steps;

use std::{fmt::Write as _, time::Duration};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Owner, ParkReply, ParkRequest, RenewRequest, Resolution,
    StoreKey,
    parking::Parked,
    protocol::{self, Operation, Reply, State},
};
use proptest::{
    collection::vec,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::time::Instant;

use crate::conformance::store::StoreUnderTest;
use ledger::Ledger;
use steps::{KEYS, PROCESSES, step};
pub use steps::{Parking, Step};

/// The shortest time a sequence lets pass: the tenth part of a lease, about. Every end of a lease or lifetime falls
/// half way between two multiples of it, so that a store may be late by almost half a tick.
const TICKS_IN_LEASE: f64 = 10.5;
const GRACE: f64 = 20.0;
const RETENTION: f64 = 40.5;

/// Runs `cases` random sequences of up to 40 steps against a store.
///
/// Time passes through [`StoreUnderTest::pass`] in tenths of [`StoreUnderTest::lease`]; for a store in real time, that
/// should be well above the time it takes to answer. A sequence that was held up for longer than that by the machine
/// is given up and not counted; it panics when this happens to more than half of them.
///
/// # Panics
/// When the store breaks a rule: with the shortest sequence found, the rule, and the seed.
pub async fn check_store<T: StoreUnderTest>(subject: &T, cases: u32) {
    check_store_seeded(subject, cases, seed()).await;
}

/// As [`check_store`], with the seed that a failure printed.
///
/// # Panics
/// As [`check_store`].
pub async fn check_store_seeded<T: StoreUnderTest>(subject: &T, cases: u32, seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let sequences = vec(step(), 1..40);
    let mut given_up = 0;
    for case in 0..cases {
        let Ok(mut tree) = sequences.new_tree(&mut runner) else { continue };
        let steps = tree.current();
        match run(subject, &steps).await {
            Ok(()) => {}
            Err(Broken::TooSlow) => given_up += 1,
            Err(Broken::Rule(rule)) => {
                let (steps, rule) = shrink(subject, &mut tree, steps, rule).await;
                let mut text = String::new();
                for step in &steps {
                    // Writing to a string does not fail.
                    let _ = writeln!(text, "  {step:?}");
                }
                panic!("{rule}\ncase {case} of seed {seed}; the shortest sequence found:\n{text}");
            }
        }
    }
    assert!(
        given_up * 2 <= cases,
        "{given_up} of {cases} sequences were given up: the store is too slow here"
    );
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

enum Broken {
    Rule(String),
    TooSlow,
}

/// Takes steps away as long as what is left still breaks a rule.
async fn shrink<T: StoreUnderTest>(
    subject: &T,
    tree: &mut impl ValueTree<Value = Vec<Step>>,
    steps: Vec<Step>,
    rule: String,
) -> (Vec<Step>, String) {
    let mut worst = (steps, rule);
    let mut more = tree.simplify();
    for _ in 0..500 {
        if !more {
            break;
        }
        let steps = tree.current();
        more = match run(subject, &steps).await {
            Err(Broken::Rule(rule)) => {
                worst = (steps, rule);
                tree.simplify()
            }
            Ok(()) | Err(Broken::TooSlow) => tree.complicate(),
        };
    }
    worst
}

async fn run<T: StoreUnderTest>(subject: &T, steps: &[Step]) -> Result<(), Broken> {
    let mut world = World::new(subject).await;
    for (at, step) in steps.iter().enumerate() {
        let done = world.take(*step).await;
        if world.is_late() {
            return Err(Broken::TooSlow);
        }
        done.map_err(|rule| Broken::Rule(format!("step {at}, {step:?}: {rule}")))?;
    }
    Ok(())
}

struct World<'a, T: StoreUnderTest> {
    subject: &'a T,
    store: T::Store,
    started: Instant,
    /// In ticks.
    now: u64,
    tick: Duration,
    /// The present life of each process; a crash ends it.
    processes: Vec<u128>,
    next_id: u64,
    keys: Vec<Known>,
    /// Claims that were granted and not resolved, also those whose lease has ended.
    held: Vec<(usize, Claim)>,
    /// Claims whose reply was lost.
    asking: Vec<(usize, ClaimRequest)>,
    /// Who waits of the message key that all of them have.
    parked: Parked,
}

/// What the reference and the ledger know of a key.
struct Known {
    key: StoreKey,
    state: State,
    expires_at: u64,
    ledger: Ledger,
}

impl Known {
    fn state(&self, now: u64) -> State {
        if self.expires_at > now { self.state } else { State::Absent }
    }
}

impl<'a, T: StoreUnderTest> World<'a, T> {
    async fn new(subject: &'a T) -> Self {
        let scope = crate::unique("model");
        let key = |n: usize| Known {
            key: StoreKey::new(scope.as_str().into(), n.to_string().into()),
            state: State::Absent,
            expires_at: 0,
            ledger: Ledger::default(),
        };
        let store = subject.store().await;
        let tick = subject.lease().div_f64(TICKS_IN_LEASE);
        Self {
            subject,
            store,
            started: Instant::now(),
            now: 0,
            tick,
            processes: (0..PROCESSES as u128).collect(),
            next_id: PROCESSES as u64,
            keys: (0..KEYS).map(key).collect(),
            held: Vec::new(),
            asking: Vec::new(),
            parked: Parked::default(),
        }
    }

    /// The model's clock in milliseconds, as the reference wants it. It starts far from zero, as stores do.
    fn millis(&self) -> u64 {
        1_000_000 + self.now * u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX)
    }

    fn is_late(&self) -> bool {
        let due = self.tick.mul_f64(self.now as f64);
        self.started.elapsed().saturating_sub(due) > self.tick.mul_f64(0.4)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    async fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Receive { process, key, payload, attempt, redrive, lost } => {
                let owner = Owner { process: self.processes[process], seq: self.id() };
                let request = ClaimRequest {
                    key: self.keys[key].key.clone(),
                    owner,
                    fingerprint: payload,
                    lease: self.subject.lease(),
                    grace: self.tick.mul_f64(GRACE),
                    attempt,
                    redrive,
                };
                self.claim(key, request, lost).await
            }
            Step::AskAgain { which } => match self.asking.len() {
                0 => Ok(()),
                len => {
                    let (key, request) = self.asking.swap_remove(which % len);
                    self.claim(key, request, false).await
                }
            },
            Step::Resolve { which, resolution, lost, keep } => {
                let Some((key, claim)) = self.pick(which, keep) else { return Ok(()) };
                self.resolve(key, claim, resolution, lost).await
            }
            Step::Renew { which, failed, mode, lost } => {
                let Some((key, claim)) = self.pick(which, true) else { return Ok(()) };
                let request = RenewRequest { attempts: claim.attempts + failed, claim, mode };
                self.renew(key, request, lost).await
            }
            Step::Park { id, operation, lost } => self.park(id, operation, lost).await,
            Step::Crash { process } => {
                let dead = self.processes[process];
                self.processes[process] = u128::from(self.id());
                // The dead neither act nor ask again.
                self.held.retain(|(_, claim)| claim.owner.process != dead);
                self.asking.retain(|(_, request)| request.owner.process != dead);
                Ok(())
            }
            Step::Pass { ticks } => {
                self.now += u64::from(ticks);
                let due = self.started + self.tick.mul_f64(self.now as f64);
                self.subject.pass(due.saturating_duration_since(Instant::now())).await;
                Ok(())
            }
        }
    }

    /// One of the claims; a stalled owner may resolve its own once more later, as a retry does.
    fn pick(&mut self, which: usize, keep: bool) -> Option<(usize, Claim)> {
        let len = self.held.len();
        match (len, keep) {
            (0, _) => None,
            (_, true) => self.held.get(which % len).cloned(),
            (_, false) => Some(self.held.swap_remove(which % len)),
        }
    }

    /// What the reference answers to an operation; what it writes is noted.
    fn reference(&mut self, key: usize, operation: &Operation<'_>) -> Reply {
        let now = self.millis();
        let known = &mut self.keys[key];
        let (reply, write) = protocol::transition(&known.state(now), operation, now);
        if let Some(write) = write {
            known.state = write.state;
            known.expires_at = now + u64::try_from(write.lifetime.as_millis()).unwrap_or(u64::MAX);
        }
        reply
    }

    async fn flush(&self) -> Result<(), String> {
        self.store.flush().await.map_err(|error| format!("flush failed: {error}"))
    }

    async fn claim(&mut self, key: usize, request: ClaimRequest, lost: bool) -> Result<(), String> {
        let now = self.millis();
        let was_absent = self.keys[key].state(now) == State::Absent;
        let expected = self.reference(key, &Operation::Claim(&request));
        let Reply::Claim(mut expected) = expected else { return Err("no answer to a claim".into()) };
        if lost {
            drop(self.store.claim(request.clone()));
            self.flush().await?;
        }
        let reply =
            self.store.claim(request.clone()).await.map_err(|error| format!("claim failed: {error}"))?;
        // A new record starts at the store's own time, which only the store knows.
        if let (true, ClaimReply::Claimed(expected), ClaimReply::Claimed(got)) =
            (was_absent, &mut expected, &reply)
        {
            expected.epoch = got.epoch;
            if let State::Claimed(claimed) = &mut self.keys[key].state {
                claimed.numbers.epoch = got.epoch;
            }
        }
        let ledger = &mut self.keys[key].ledger;
        ledger.claim(&request, &reply, now, self.tick.mul_f64(0.9))?;
        match (&expected, &reply) {
            // The ledger has compared the times.
            (ClaimReply::Busy { .. }, ClaimReply::Busy { .. }) => {}
            (expected, reply) if expected == reply => {}
            (expected, reply) => return Err(format!("answered {reply:?}, the protocol says {expected:?}")),
        }
        if let ClaimReply::Claimed(claim) = reply {
            self.held.retain(|(_, held)| held.owner != claim.owner);
            self.held.push((key, claim));
            if lost {
                self.asking.push((key, request));
            }
        }
        Ok(())
    }

    async fn resolve(
        &mut self,
        key: usize,
        claim: Claim,
        resolution: Resolution,
        lost: bool,
    ) -> Result<(), String> {
        let now = self.millis();
        let lifetime = self.tick.mul_f64(RETENTION);
        let expected = self.reference(key, &Operation::Resolve(&claim, resolution, lifetime));
        let answer = self.store.resolve(claim.clone(), resolution, lifetime);
        if lost {
            drop(answer);
            self.flush().await?;
            return self.keys[key].ledger.resolve(&claim, resolution, None, now, lifetime);
        }
        let resolved = answer.await.map_err(|error| format!("resolve failed: {error}"))?;
        self.keys[key].ledger.resolve(&claim, resolution, Some(resolved), now, lifetime)?;
        match expected {
            Reply::Resolve(expected) if expected == resolved => Ok(()),
            expected => {
                Err(format!("{resolution:?} was answered {resolved:?}, the protocol says {expected:?}"))
            }
        }
    }

    async fn renew(&mut self, key: usize, request: RenewRequest, lost: bool) -> Result<(), String> {
        let now = self.millis();
        let expected = self.reference(key, &Operation::Renew(&request));
        let answer = self.store.renew(vec![request.clone()]);
        if lost {
            drop(answer);
            self.flush().await?;
            return self.keys[key].ledger.renew(&request, None, now);
        }
        let answer = answer.await.map_err(|error| format!("renew failed: {error}"))?;
        let renewal = *answer.first().ok_or("a renewal got no answer")?;
        self.keys[key].ledger.renew(&request, Some(renewal), now)?;
        match expected {
            Reply::Renew(expected) if expected == renewal => Ok(()),
            expected => Err(format!("a renewal was answered {renewal:?}, the protocol says {expected:?}")),
        }
    }

    async fn park(&mut self, id: u128, operation: Parking, lost: bool) -> Result<(), String> {
        let now = self.millis();
        let request = ParkRequest {
            key: self.keys[0].key.clone(),
            id,
            operation: operation.over(self.tick),
            lifetime: self.tick.mul_f64(RETENTION),
        };
        if lost {
            drop(self.store.park(request.clone()));
            self.flush().await?;
        }
        let expected = self.parked.apply(&request, now);
        // It reaches the store twice.
        let expected = if lost { self.parked.apply(&request, now) } else { expected };
        let reply = self.store.park(request).await.map_err(|error| format!("park failed: {error}"))?;
        match (expected, reply) {
            (ParkReply::Behind { remaining: expected }, ParkReply::Behind { remaining })
                if expected.abs_diff(remaining) <= self.tick.mul_f64(0.9) =>
            {
                Ok(())
            }
            (expected, reply) if expected == reply => Ok(()),
            (expected, reply) => {
                Err(format!("{operation:?} was answered {reply:?}, the specification says {expected:?}"))
            }
        }
    }
}
