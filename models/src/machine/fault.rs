//! What can go wrong, and what that does.

use super::{
    Machine,
    record::{LEASE, Record},
    step::{is_free, leases},
    store::Variant,
    world::{Ack, Delivery, End, Late, Phase, World},
};

/// Operations that may be on their way on their own at a time; more are lost.
const LATE: usize = 1;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A process dies and another takes its place; what it had not acked is delivered again, with `redelivers` also what
    /// the broker does not know to be acked.
    Crash {
        /// Which one.
        process: u8,
        /// Whether the acks are lost with it.
        redelivers: bool,
    },
    /// A process does nothing for a while.
    Stall(u8),
    /// The answer to an operation is lost.
    LoseReply(usize),
    /// An operation is sent again while the first copy of it is still on its way.
    Repeat(usize),
    /// What became of a claim is held up on its way to the store, beyond the lease.
    Slow(usize),
    /// No renewal is answered until the client's deadline: it stops by itself.
    CutOff(usize),
    /// A delivery is handed back: shutdown or rebalance.
    Return(usize),
    /// The broker delivers again what was acked.
    Redeliver(usize),
    /// The handler fails, and the message is presented again.
    Fail(usize),
    /// The handler fails for good.
    FailForGood(usize),
    /// The handler fails, and a delayed copy takes over.
    Defer(usize),
    /// The wall clock of a process jumps ahead by a lease.
    WallClock(u8),
    /// The store's clock jumps: ahead, and every lease ends; back, and every lease is as long as it ever was.
    StoreClock {
        /// Whether ahead.
        ahead: bool,
    },
    /// The store fails over to a replica that lacks the last write.
    Failover,
    /// A record of a claim that ended, or that was released, is forgotten: its grace ends.
    Forget(usize),
    /// The operator's program dies.
    Operator,
}

impl Machine {
    /// What can go wrong now.
    pub fn faults(&self, world: &World, out: &mut Vec<Fault>) {
        if world.faults == 0 {
            return;
        }
        for process in 0..2_u8 {
            let mut of = world.deliveries.iter().filter(|delivery| delivery.process == process);
            let acked = of.clone().any(|delivery| matches!(delivery.phase, Phase::Acked(_)));
            out.push(Fault::Crash { process, redelivers: false });
            if acked {
                out.push(Fault::Crash { process, redelivers: true });
            }
            let place = usize::from(process);
            if !world.stalled[place] && of.any(|d| d.has_deadline() || d.is_unrecorded()) {
                out.push(Fault::Stall(process));
            }
            if !world.ahead[place] {
                out.push(Fault::WallClock(process));
            }
        }
        for (index, delivery) in world.deliveries.iter().enumerate() {
            self.faults_of(world, index, delivery, out);
        }
        let claimed = |key: &super::Key| matches!(key.record, Record::Claimed { .. });
        if world.keys.iter().any(claimed) {
            out.extend([Fault::StoreClock { ahead: true }, Fault::StoreClock { ahead: false }]);
        }
        if world.unreplicated.is_some() {
            out.push(Fault::Failover);
        }
        for (index, key) in world.keys.iter().enumerate() {
            if matches!(key.record, Record::Claimed { left: 0, .. } | Record::Released(_)) {
                out.push(Fault::Forget(index));
            }
        }
        if world.letters.iter().any(|letter| letter.published) {
            out.push(Fault::Operator);
        }
    }

    fn faults_of(&self, world: &World, index: usize, delivery: &Delivery, out: &mut Vec<Fault>) {
        if matches!(delivery.phase, Phase::Acked(_)) {
            return out.push(Fault::Redeliver(index));
        }
        let stalled = world.stalled[usize::from(delivery.process)];
        let sends = match delivery.phase {
            Phase::Waiting => is_free(world, index),
            Phase::Recording(_) => true,
            _ => delivery.left == 0,
        };
        if sends && !stalled {
            out.push(Fault::LoseReply(index));
            if world.late.len() < LATE {
                out.push(Fault::Repeat(index));
            }
        }
        if matches!(delivery.phase, Phase::Recording(_)) && !delivery.slow {
            out.push(Fault::Slow(index));
        }
        if delivery.has_deadline() && delivery.left == 0 && !stalled {
            out.push(Fault::CutOff(index));
        }
        let claim_is_unknown = delivery.phase == Phase::Waiting && world.holds(index);
        let settles = matches!(delivery.phase, Phase::Recording(End::Failed | End::Returned));
        if !stalled && !delivery.back && !settles && (delivery.phase != Phase::Waiting || claim_is_unknown) {
            out.push(Fault::Return(index));
        }
        if delivery.phase == Phase::Running && !stalled {
            out.extend([Fault::Fail(index), Fault::FailForGood(index)]);
            if self.ways_back.is_some() {
                out.push(Fault::Defer(index));
            }
        }
    }

    pub(super) fn fault(&self, world: &mut World, fault: Fault) {
        match fault {
            Fault::Crash { process, redelivers } => crash(world, process, redelivers),
            Fault::Stall(process) => world.stalled[usize::from(process)] = true,
            Fault::LoseReply(index) => {
                if let Some(op) = world.op(index) {
                    let key = usize::from(world.deliveries[index].key);
                    world.ask(self.variant, key, op, None);
                }
            }
            Fault::Repeat(index) => send(world, index),
            Fault::Slow(index) => world.deliveries[index].slow = true,
            Fault::CutOff(index) => self.hand_back(world, index),
            Fault::Return(index) => match world.deliveries[index].phase {
                Phase::Recording(_) => world.deliveries[index].back = true,
                _ => self.hand_back(world, index),
            },
            Fault::Redeliver(index) => {
                world.deliveries[index] = world.deliveries[index].anew(Phase::Waiting);
            }
            Fault::Fail(index) => fail(world, index, Phase::Recording(End::Failed)),
            Fault::FailForGood(index) => {
                fail(world, index, Phase::Publishing(End::DeadLettered));
                if self.variant == Variant::AckBeforeConfirm {
                    world.deliveries[index].phase = Phase::Acked(Ack::DeadLetter);
                }
            }
            Fault::Defer(index) => {
                fail(world, index, Phase::Publishing(End::Deferred));
                if self.variant == Variant::AckBeforeCopy {
                    world.deliveries[index].phase = Phase::Acked(Ack::Copy);
                }
            }
            Fault::WallClock(process) => world.ahead[usize::from(process)] = true,
            Fault::StoreClock { ahead } => store_clock(world, ahead),
            Fault::Failover => failover(world),
            Fault::Forget(key) => {
                world.keys[key].record = Record::Absent;
                world.keys[key].behind = 0;
                world.unreplicated = None;
            }
            Fault::Operator => world.letters.iter_mut().for_each(|letter| letter.published = false),
        }
    }
}

/// A fault takes the delivery its claim, or may have.
pub(super) fn bereave(world: &mut World, index: usize) {
    let delivery = &mut world.deliveries[index];
    if delivery.has_deadline() || matches!(delivery.phase, Phase::Publishing(_)) {
        delivery.bereft = true;
    } else if delivery.is_unrecorded() {
        world.key_of(index).excused = true;
    }
}

fn fail(world: &mut World, index: usize, phase: Phase) {
    let key = world.key_of(index);
    key.failures = (key.failures + 1).min(4);
    let delivery = &mut world.deliveries[index];
    delivery.attempts += 1;
    delivery.phase = phase;
}

/// Puts down what the delivery sends as something on its own.
fn send(world: &mut World, index: usize) {
    let Some(op) = world.op(index) else { return };
    if world.late.len() < LATE {
        let key = world.deliveries[index].key;
        world.late.push(Late { key, op });
    }
}

fn crash(world: &mut World, process: u8, redelivers: bool) {
    for index in 0..world.deliveries.len() {
        let delivery = world.deliveries[index];
        if delivery.process != process {
            continue;
        }
        if let Phase::Recording(_) = delivery.phase {
            send(world, index);
        }
        if delivery.is_unrecorded() {
            world.key_of(index).excused = true;
        }
        if !matches!(delivery.phase, Phase::Acked(_)) || redelivers {
            world.deliveries[index] = delivery.anew(Phase::Waiting);
        }
    }
    world.stalled[usize::from(process)] = false;
    world.bury(process);
}

fn store_clock(world: &mut World, forward: bool) {
    for index in 0..world.deliveries.len() {
        if forward && world.holds(index) {
            bereave(world, index);
        }
    }
    leases(world, |_| if forward { 0 } else { LEASE });
}

fn failover(world: &mut World) {
    let Some(before) = world.unreplicated.take() else { return };
    let key = usize::from(before.key);
    (world.keys[key].record, world.keys[key].behind) = (before.record, before.behind);
    (world.keys[key].lost, world.keys[key].excused) = (true, true);
    for index in 0..world.deliveries.len() {
        if usize::from(world.deliveries[index].key) == key {
            bereave(world, index);
        }
    }
}
