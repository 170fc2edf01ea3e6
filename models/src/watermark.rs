//! The commit watermark: one partition, two members of its group, and rebalances at any point.
//!
//! What is delivered and done is kept by `consumer-kafka`'s own `tracker.rs`, which this crate compiles: every delivery,
//! settlement and redelivery is a call of its `Tracker`, and what is to be committed is its `Progress`. Around it a member does
//! what the rest of that crate does: the *source* (`source.rs`) finds the tracker by the number of the assignment, and the
//! *thread* (`thread.rs`, `rebalance.rs`, `commit.rs`) begins a commit, asks under its lock whether the assignment is still
//! there (`keep_ours`), commits, and commits for the last time when a partition is revoked. Source and thread learn of things at
//! different times, in any order: a commit may be on its way while the partition goes and comes back, a handler may end
//! after its assignment did, the drain may run out first, and a partition may be lost without anybody being told yet.
//!
//! The log has a hole, as compaction leaves them: its offsets are 0, 2 and 3. Messages may end in any order, be handed
//! back and be delivered again, any number of times; only rebalances, losses and deaths of a member are bounded. The
//! broker refuses a commit from a member that does not have the partition, as Kafka does by the generation of the group.
//!
//! # What has to hold
//!
//! - *5: nothing is passed*: every offset of the log below the committed one was acked.
//! - *5: nothing delivered is passed*: when an assignment commits, what *it* delivered below that was acked in it; so the
//!   late end of a handler from an assignment before counts for nothing.
//! - *5: a commit is of the assignment there is*: nothing is committed for a partition that was lost or assigned anew.
//! - *5: commits only grow*.
//! - *6: every message is settled in time*: from every state, the schedule without rebalances, in which each part of each
//!   member gets one step on in turn and handlers succeed, commits the end of the log within N steps.
//!
//! # What is left out
//!
//! More partitions: trackers and numbers of assignments share nothing. The buffer between thread and source: what is in it
//! when a partition goes is not delivered, and comes again. Commits that fail and are tried again: nothing was changed.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use stateright::{Model, Property};

use crate::{
    Explored,
    tracker::{Progress, Tracker},
};

/// More steps than the schedule without rebalances may take to commit the end of the log; how many it takes at the most,
/// N, is in `docs/models.md`.
pub const WITHIN: u32 = 64;

const LOG: [u64; 3] = [0, 2, 3];
const END: u64 = 4;

/// The code, or the code with one mistake in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Variant {
    /// As it is.
    #[default]
    Code,
    /// What is committed is the highest offset that was acked.
    CommitTheHighest,
    /// A settlement goes to the assignment there is, whatever delivery it is for.
    LateIsBooked,
    /// A commit that has begun is not asked whether its assignment is still there.
    CommitUnasked,
    /// The last commit of an assignment does not wait for the one that is on its way.
    CommitsOverlap,
    /// A message that was handed back is not delivered again.
    NackIsDropped,
}

/// One state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    members: [Member; 2],
    /// Who has the partition, as the broker sees it.
    owner: Option<usize>,
    committed: u64,
    /// Messages of the log that were ever acked.
    acked: [bool; 3],
    /// The last assignment; every one has its number.
    scope: u8,
    /// Rebalances, losses and deaths that may still come.
    faults: u8,
    broken: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    Delivered,
    Stale,
    Backwards,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Member {
    /// The source's view.
    tracked: Vec<Tracked>,
    /// The thread's view.
    slot: Option<Slot>,
    /// A commit on its way.
    commit: Option<(u8, Progress)>,
    /// With the runtime: assignment and offset.
    running: Vec<(u8, u64)>,
    /// To be delivered again.
    returned: Vec<(u8, u64)>,
}

/// An assignment as the source has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tracked {
    scope: u8,
    tracker: Tracker<()>,
    progress: Progress,
    /// The next message of the log to deliver.
    next: usize,
    closing: bool,
    /// Only for the model: what was delivered in it, and acked.
    delivered: [bool; 3],
    acked: [bool; 3],
}

/// An assignment as the thread has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Slot {
    scope: u8,
    committed: Progress,
    revoking: bool,
}

/// One step of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The group gives it the partition.
    Assign(usize),
    /// The next message goes to the runtime.
    Deliver(usize),
    /// One that was handed back goes there again.
    DeliverAgain(usize),
    /// The runtime acks the message in this place of those that run.
    Ack(usize, usize),
    /// It hands it back.
    Nack(usize, usize),
    /// The thread begins a commit.
    BeginCommit(usize),
    /// The commit reaches the broker, if it still may.
    Commit(usize),
    /// The source learns that its assignment ends.
    Close(usize),
    /// The runtime says that it has nothing more of an assignment that ends.
    Release(usize),
    /// The partition goes, after the last commit: everything was released, or the time for that is over.
    Revoked(usize),
    /// The thread learns that the partition was lost.
    Lost(usize),
    /// The group revokes the partition.
    Revoke(usize),
    /// The group takes the partition from a member that it does not hear.
    Lose(usize),
    /// A member dies.
    Crash(usize),
}

/// The model.
#[derive(Debug, Clone)]
pub struct Watermark {
    variant: Variant,
    faults: u8,
    bound: u32,
    longest: Arc<AtomicU32>,
}

/// The model with so many rebalances, losses and deaths.
pub fn model(variant: Variant, faults: u8) -> Watermark {
    Watermark { variant, faults, bound: WITHIN, longest: Arc::default() }
}

fn place(offset: u64) -> usize {
    LOG.iter().position(|at| *at == offset).unwrap_or(LOG.len())
}

impl Member {
    fn tracked(&mut self, scope: u8) -> Option<&mut Tracked> {
        self.tracked.iter_mut().find(|tracked| tracked.scope == scope)
    }

    fn can_deliver(&self) -> bool {
        self.tracked.iter().any(|tracked| !tracked.closing && tracked.next < LOG.len())
    }

    fn to_close(&self) -> Option<usize> {
        let ends = |scope| self.slot.is_none_or(|slot| slot.revoking || slot.scope != scope);
        self.tracked.iter().position(|tracked| !tracked.closing && ends(tracked.scope))
    }

    fn to_commit(&self) -> Option<(u8, Progress)> {
        let slot = self.slot?;
        let tracked = self.tracked.iter().find(|tracked| tracked.scope == slot.scope)?;
        tracked.progress.is_news(slot.committed).then_some((slot.scope, tracked.progress))
    }
}

impl Watermark {
    /// Visits every state.
    pub fn explore(self) -> Explored {
        let longest = self.longest.clone();
        Explored::of(self, &longest)
    }

    fn steps(&self, group: &Group, out: &mut Vec<Action>) {
        for (index, member) in group.members.iter().enumerate() {
            if member.slot.is_none() && group.owner.is_none() {
                out.push(Action::Assign(index));
            }
            if member.can_deliver() {
                out.push(Action::Deliver(index));
            }
            if !member.returned.is_empty() {
                out.push(Action::DeliverAgain(index));
            }
            out.extend((0..member.running.len()).map(|at| Action::Ack(index, at)));
            if member.commit.is_none() && member.to_commit().is_some() {
                out.push(Action::BeginCommit(index));
            }
            if member.commit.is_some() {
                out.push(Action::Commit(index));
            }
            if member.to_close().is_some() {
                out.push(Action::Close(index));
            }
            if member.tracked.iter().any(|tracked| tracked.closing) {
                out.push(Action::Release(index));
            }
            if member.slot.is_some_and(|slot| slot.revoking) {
                out.push(Action::Revoked(index));
            }
            if member.slot.is_some() && group.owner != Some(index) {
                out.push(Action::Lost(index));
            }
        }
    }

    fn apply(&self, group: &mut Group, action: Action) {
        match action {
            Action::Assign(index) => {
                group.owner = Some(index);
                group.scope += 1;
                let (scope, from) = (group.scope, group.committed);
                let member = &mut group.members[index];
                member.slot = Some(Slot { scope, committed: Progress::default(), revoking: false });
                member.tracked.push(Tracked {
                    scope,
                    tracker: Tracker::default(),
                    progress: Progress::default(),
                    next: LOG.iter().filter(|offset| **offset < from).count(),
                    closing: false,
                    delivered: [false; 3],
                    acked: [false; 3],
                });
            }
            Action::Deliver(index) => {
                let member = &mut group.members[index];
                let open = member.tracked.iter_mut().find(|t| !t.closing && t.next < LOG.len());
                let Some(tracked) = open else { return };
                tracked.tracker.deliver(LOG[tracked.next], ());
                tracked.delivered[tracked.next] = true;
                member.running.push((tracked.scope, LOG[tracked.next]));
                tracked.next += 1;
                member.running.sort_unstable();
            }
            Action::DeliverAgain(index) => {
                let member = &mut group.members[index];
                let (scope, offset) = member.returned.remove(0);
                if member.tracked(scope).is_some_and(|t| t.tracker.deliver_again(offset).is_some()) {
                    member.running.push((scope, offset));
                    member.running.sort_unstable();
                }
            }
            Action::Ack(index, at) => self.ack(group, index, at),
            Action::Nack(index, at) => {
                let member = &mut group.members[index];
                let (scope, offset) = member.running.remove(at);
                let again = member.tracked(scope).is_some_and(|t| t.tracker.give_back(offset) && !t.closing);
                if again && self.variant != Variant::NackIsDropped {
                    member.returned.push((scope, offset));
                    member.returned.sort_unstable();
                }
            }
            Action::BeginCommit(index) => {
                group.members[index].commit = group.members[index].to_commit();
            }
            Action::Commit(index) => {
                let Some(commit) = group.members[index].commit.take() else { return };
                let ours = group.members[index].slot.is_some_and(|slot| slot.scope == commit.0);
                if ours || self.variant == Variant::CommitUnasked {
                    commit_to(group, index, commit);
                }
            }
            Action::Close(index) => {
                let member = &mut group.members[index];
                let Some(at) = member.to_close() else { return };
                member.tracked[at].closing = true;
                let scope = member.tracked[at].scope;
                member.returned.retain(|(of, _)| *of != scope);
            }
            Action::Release(index) => {
                let tracked = &mut group.members[index].tracked;
                if let Some(at) = tracked.iter().position(|tracked| tracked.closing) {
                    tracked.remove(at);
                }
            }
            Action::Revoked(index) => {
                // Under the lock: a commit that has begun waits, and finds its assignment gone.
                if let Some(commit) = group.members[index].to_commit() {
                    commit_to(group, index, commit);
                }
                let begun = group.members[index].commit.filter(|_| self.variant == Variant::CommitsOverlap);
                if let Some(begun) = begun {
                    commit_to(group, index, begun);
                }
                group.members[index].slot = None;
                if group.owner == Some(index) {
                    group.owner = None;
                }
            }
            Action::Lost(index) => group.members[index].slot = None,
            Action::Revoke(index) => {
                group.faults -= 1;
                if let Some(slot) = &mut group.members[index].slot {
                    slot.revoking = true;
                }
            }
            Action::Lose(_) => {
                group.faults -= 1;
                group.owner = None;
            }
            Action::Crash(index) => {
                group.faults -= 1;
                group.members[index] = Member::default();
                if group.owner == Some(index) {
                    group.owner = None;
                }
            }
        }
    }

    fn ack(&self, group: &mut Group, index: usize, at: usize) {
        let member = &mut group.members[index];
        let (scope, offset) = member.running.remove(at);
        group.acked[place(offset)] = true;
        let booked = match (self.variant, member.slot) {
            (Variant::LateIsBooked, Some(slot)) => slot.scope,
            _ => scope,
        };
        let Some(tracked) = member.tracked(booked) else { return };
        tracked.acked[place(offset)] |= booked == scope;
        let Some(mut progress) = tracked.tracker.finish(offset).or_else(|| {
            (self.variant == Variant::CommitTheHighest).then_some(Progress { next: Some(0), settled: 0 })
        }) else {
            return;
        };
        if self.variant == Variant::CommitTheHighest {
            progress.next = progress.next.max(tracked.progress.next).max(Some(offset + 1));
        }
        tracked.progress = progress;
    }

    /// The steps of the schedule without rebalances; `None` when they are more than allowed.
    fn settles(&self, group: &Group) -> Option<u32> {
        let mut group = group.clone();
        let mut taken = 0;
        let mut steps = Vec::new();
        let is_turn = |action: &Action, index: usize, part: usize| match *action {
            Action::Lost(of) | Action::Close(of) => (of, 0) == (index, part),
            Action::Release(of) => (of, 1) == (index, part),
            Action::Revoked(of) => (of, 2) == (index, part),
            Action::Assign(of) => (of, 3) == (index, part),
            Action::DeliverAgain(of) | Action::Deliver(of) => (of, 4) == (index, part),
            Action::Ack(of, _) => (of, 5) == (index, part),
            Action::BeginCommit(of) => (of, 6) == (index, part),
            Action::Commit(of) => (of, 7) == (index, part),
            _ => false,
        };
        while group.committed < END {
            if taken > self.bound {
                return None;
            }
            let before = taken;
            for (index, part) in (0..2).flat_map(|index| (0..8).map(move |part| (index, part))) {
                steps.clear();
                self.steps(&group, &mut steps);
                if let Some(action) = steps.iter().find(|action| is_turn(action, index, part)) {
                    self.apply(&mut group, *action);
                    taken += 1;
                }
            }
            if taken == before {
                return None;
            }
        }
        Some(taken).filter(|taken| *taken <= self.bound)
    }
}

/// The broker takes a commit of the member that has the partition, and the member is told.
fn commit_to(group: &mut Group, index: usize, (scope, progress): (u8, Progress)) {
    let Some(next) = progress.next.filter(|_| group.owner == Some(index)) else { return };
    if scope != group.scope {
        group.broken = Some(Rule::Stale);
    } else if next < group.committed {
        group.broken = Some(Rule::Backwards);
    }
    let member = &mut group.members[index];
    if let Some(tracked) = member.tracked(scope) {
        let below = LOG.iter().filter(|offset| **offset < next).count();
        if (0..below).any(|at| tracked.delivered[at] && !tracked.acked[at]) {
            group.broken = Some(Rule::Delivered);
        }
    }
    let member = &mut group.members[index];
    if let Some(slot) = member.slot.as_mut().filter(|slot| slot.scope == scope) {
        slot.committed = progress;
    }
    group.committed = next;
}

impl Model for Watermark {
    type State = Group;
    type Action = Action;

    fn init_states(&self) -> Vec<Group> {
        vec![Group {
            members: Default::default(),
            owner: None,
            committed: 0,
            acked: [false; 3],
            scope: 0,
            faults: self.faults,
            broken: None,
        }]
    }

    fn actions(&self, group: &Group, actions: &mut Vec<Action>) {
        if group.broken.is_some() {
            return;
        }
        self.steps(group, actions);
        for (index, member) in group.members.iter().enumerate() {
            actions.extend((0..member.running.len()).map(|at| Action::Nack(index, at)));
            if group.faults == 0 {
                continue;
            }
            if group.owner == Some(index) {
                actions.push(Action::Lose(index));
                if member.slot.is_some_and(|slot| !slot.revoking) {
                    actions.push(Action::Revoke(index));
                }
            }
            if *member != Member::default() {
                actions.push(Action::Crash(index));
            }
        }
    }

    fn next_state(&self, group: &Group, action: Action) -> Option<Group> {
        let mut next = group.clone();
        self.apply(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("5: nothing is passed", |_, group| {
                LOG.iter().zip(group.acked).all(|(offset, acked)| acked || *offset >= group.committed)
            }),
            Property::<Self>::always("5: nothing delivered is passed", |_, group| {
                group.broken != Some(Rule::Delivered)
            }),
            Property::<Self>::always("5: a commit is of the assignment there is", |_, group| {
                group.broken != Some(Rule::Stale)
            }),
            Property::<Self>::always("5: commits only grow", |_, group| {
                group.broken != Some(Rule::Backwards)
            }),
            Property::<Self>::always("6: every message is settled in time", |model, group| {
                let taken = model.settles(group);
                model.longest.fetch_max(taken.unwrap_or(0), Ordering::Relaxed);
                taken.is_some()
            }),
        ]
    }
}
