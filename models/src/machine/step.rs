//! What may happen, and what it does.

use consumer_core::dedup::{ClaimReply, Renewal, protocol::Reply};

use super::{
    fault::{Fault, bereave},
    record::{LEASE, Record},
    store::Variant,
    world::{Ack, Delivery, End, Late, Letter, Phase, World},
};

/// Deaths alone after which a message is set aside without another call.
const MAX_CRASHES: u8 = 1;

/// One step. Deliveries, processes, operations on their own and dead letters are named by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A worker asks the store for its key, and goes on with the answer.
    Claim(usize),
    /// It takes its place in the gate; a suspect alone, after telling the store.
    Enter(usize),
    /// It prolongs its claim when its own deadline has come.
    Renew(usize),
    /// Its handler succeeds: the effect has happened.
    Succeed(usize),
    /// The broker confirms the dead letter or the delayed copy.
    Confirm(usize),
    /// The store records what became of the claim; the message is acked, or presented again.
    Record(usize),
    /// An operation on its own arrives.
    Arrive(usize),
    /// Or it never does.
    Vanish(usize),
    /// A stalled process goes on.
    Resume(u8),
    /// The operator publishes the redriven message of a dead letter, which is confirmed.
    Redrive(usize),
    /// The operator settles a dead letter.
    Settle(usize),
    /// Time passes.
    Tick,
    /// Something goes wrong.
    Fault(Fault),
}

/// The rules by which the world moves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// As it is, or with a mistake.
    pub variant: Variant,
    /// Whether messages have ways back, as delayed copies and as redriven dead letters: then what the operator publishes
    /// for a letter, by its redrive count.
    pub ways_back: Option<[Back; 3]>,
}

/// What a redriven message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Back {
    /// The attempt.
    pub attempt: u8,
    /// The redrive count.
    pub redrive: u8,
}

impl Machine {
    /// What gets a delivery on, if it needs to wait for nothing.
    pub(super) fn next_of(&self, world: &World, index: usize) -> Option<Action> {
        let delivery = &world.deliveries[index];
        match delivery.phase {
            _ if world.stalled[usize::from(delivery.process)] => None,
            Phase::Waiting => is_free(world, index).then_some(Action::Claim(index)),
            Phase::Gate => may_enter(world, index).then_some(Action::Enter(index)),
            Phase::Running => Some(Action::Succeed(index)),
            Phase::Publishing(_) => Some(Action::Confirm(index)),
            Phase::Recording(_) => Some(Action::Record(index)),
            Phase::Acked(_) => None,
        }
    }

    /// The steps that go on without any fault.
    pub fn steps(&self, world: &World, out: &mut Vec<Action>) {
        for (index, delivery) in world.deliveries.iter().enumerate() {
            if world.stalled[usize::from(delivery.process)] {
                continue;
            }
            out.extend(self.next_of(world, index));
            if delivery.left == 0 {
                let travels = matches!(delivery.phase, Phase::Publishing(_)) && !delivery.bereft;
                if delivery.has_deadline() || travels {
                    out.push(Action::Renew(index));
                }
            }
        }
        out.extend((0..world.late.len()).flat_map(|late| [Action::Arrive(late), Action::Vanish(late)]));
        out.extend((0..2_u8).filter(|p| world.stalled[usize::from(*p)]).map(Action::Resume));
        if self.ways_back.is_some() {
            for (index, letter) in world.letters.iter().enumerate() {
                out.push(if letter.published { Action::Settle(index) } else { Action::Redrive(index) });
                if self.variant == Variant::SettleBeforeConfirm {
                    out.push(Action::Settle(index));
                }
            }
        }
        if can_tick(world) {
            out.push(Action::Tick);
        }
    }

    /// The world after a step.
    pub fn apply(&self, world: &World, action: Action) -> World {
        let mut next = world.clone();
        self.step(&mut next, action);
        if next.faults == 0 {
            // What can not come back any more need not be remembered.
            next.unreplicated = None;
        }
        next.renumber();
        next
    }

    pub(super) fn step(&self, world: &mut World, action: Action) {
        match action {
            Action::Claim(index) => self.claim(world, index),
            Action::Enter(index) => self.enter(world, index),
            Action::Renew(index) => {
                if self.renew(world, index) {
                    (world.deliveries[index].left, world.deliveries[index].bereft) = (LEASE - 1, false);
                } else if world.deliveries[index].has_deadline() {
                    self.hand_back(world, index);
                } else {
                    world.deliveries[index].bereft = true;
                }
            }
            Action::Succeed(index) => {
                let bereft = world.deliveries[index].bereft;
                let key = world.key_of(index);
                key.effects = (key.effects + 1).min(3);
                key.excused |= bereft;
                world.deliveries[index].phase = Phase::Recording(End::Completed);
            }
            Action::Confirm(index) => self.confirm(world, index),
            Action::Record(index) => self.record(world, index),
            Action::Arrive(index) => {
                let Late { key, op } = world.late.remove(index);
                world.ask(self.variant, key.into(), op, None);
            }
            Action::Vanish(index) => {
                world.late.remove(index);
            }
            Action::Resume(process) => world.stalled[usize::from(process)] = false,
            Action::Redrive(index) => {
                let Letter { key, redrive, .. } = world.letters[index];
                let mut back = self.ways_back.unwrap_or_default()[usize::from(redrive.min(2))];
                if self.variant == Variant::RedriveWithoutCount {
                    back.redrive = redrive;
                }
                world.letters[index].published = true;
                deliver(world, key, back);
            }
            Action::Settle(index) => {
                world.letters.remove(index);
            }
            Action::Tick => tick(world),
            Action::Fault(fault) => {
                world.faults -= 1;
                self.fault(world, fault);
            }
        }
    }

    fn claim(&self, world: &mut World, index: usize) {
        let Some(op) = world.op(index) else { return };
        let key = usize::from(world.deliveries[index].key);
        let read = world.deliveries[index].read.take();
        if self.variant == Variant::TwoSteps && read.is_none() {
            world.deliveries[index].read = Some(world.keys[key].record);
            return;
        }
        let Reply::Claim(reply) = world.ask(self.variant, key, op, read) else { return };
        let ack = match reply {
            ClaimReply::Claimed(claim) => {
                let open = !claim.suspect && may_enter(world, index);
                let delivery = &mut world.deliveries[index];
                *delivery = delivery.anew(match claim.crashes >= MAX_CRASHES.into() {
                    true => Phase::Publishing(End::DeadLettered),
                    false if open => Phase::Running,
                    false => Phase::Gate,
                });
                delivery.left = LEASE - 1;
                delivery.suspect = claim.suspect;
                delivery.attempts = u8::try_from(claim.attempts).unwrap_or(u8::MAX);
                delivery.known = u8::try_from(claim.redrive).unwrap_or(u8::MAX);
                return;
            }
            ClaimReply::Completed if self.variant == Variant::RunsWhatIsCompleted => {
                let delivery = &mut world.deliveries[index];
                (delivery.phase, delivery.left) = (Phase::Running, LEASE - 1);
                return;
            }
            ClaimReply::Completed => Ack::Effect,
            ClaimReply::DeadLettered => Ack::DeadLetter,
            ClaimReply::Superseded => Ack::Copy,
            // Held, and asked again with the same nonce.
            _ => return,
        };
        world.retire(index);
        world.deliveries[index] = world.deliveries[index].anew(Phase::Acked(ack));
    }

    fn enter(&self, world: &mut World, index: usize) {
        if world.deliveries[index].suspect {
            world.deliveries[index].alone = true;
            if !self.renew(world, index) {
                world.deliveries[index].alone = false;
                return self.hand_back(world, index);
            }
            world.deliveries[index].left = LEASE - 1;
        }
        world.deliveries[index].phase = Phase::Running;
    }

    /// Whether the claim holds.
    fn renew(&self, world: &mut World, index: usize) -> bool {
        let Some(op) = world.op(index) else { return false };
        let key = usize::from(world.deliveries[index].key);
        world.ask(self.variant, key, op, None) == Reply::Renew(Renewal::Held)
    }

    /// The handler, if it runs, is dropped; so is the claim, which records that it is returned.
    pub(super) fn hand_back(&self, world: &mut World, index: usize) {
        let delivery = &mut world.deliveries[index];
        let end = match delivery.phase {
            Phase::Publishing(_) => End::Failed,
            _ if self.variant == Variant::ReturnCounts => {
                delivery.attempts += 1;
                End::Failed
            }
            _ => End::Returned,
        };
        delivery.phase = Phase::Recording(end);
    }

    fn confirm(&self, world: &mut World, index: usize) {
        let delivery = world.deliveries[index];
        let Phase::Publishing(end) = delivery.phase else { return };
        // As the store knows it: this may be the original of a message that was redriven meanwhile.
        let redrive = match (self.variant, end) {
            (Variant::LetterWithItsOwnCount, End::DeadLettered) => delivery.redrive,
            _ => delivery.redrive.max(delivery.known),
        };
        let key = world.key_of(index);
        key.excused |= delivery.bereft;
        if end == End::DeadLettered {
            let letters = &mut key.letters[usize::from(redrive.min(2))];
            *letters = (*letters + 1).min(2);
            if self.ways_back.is_some() {
                world.letters.push(Letter { key: delivery.key, redrive, published: false });
            }
        } else {
            key.copies = (key.copies + 1).min(2);
            let back = Back { attempt: delivery.attempts + 1, redrive };
            deliver(world, delivery.key, back);
        }
        world.deliveries[index].phase = Phase::Recording(end);
    }

    fn record(&self, world: &mut World, index: usize) {
        let delivery = world.deliveries[index];
        let (Some(op), Phase::Recording(end)) = (world.op(index), delivery.phase) else { return };
        world.ask(self.variant, delivery.key.into(), op, None);
        world.retire(index);
        let phase = match end {
            _ if delivery.back => Phase::Waiting,
            End::Completed => Phase::Acked(Ack::Effect),
            End::DeadLettered => Phase::Acked(Ack::DeadLetter),
            End::Deferred => Phase::Acked(Ack::Copy),
            End::Failed | End::Returned => Phase::Waiting,
        };
        world.deliveries[index] = delivery.anew(phase);
    }
}

/// A message that came back goes to the processes in turn.
fn deliver(world: &mut World, key: u8, back: Back) {
    let process = u8::try_from(world.deliveries.len() % 2).unwrap_or(0);
    world.deliveries.push(Delivery::new(process, key, back.attempt, back.redrive));
}

/// Nobody in its process works on its key: the others wait for whoever does.
pub(super) fn is_free(world: &World, index: usize) -> bool {
    let delivery = &world.deliveries[index];
    let busy = |other: &Delivery| !matches!(other.phase, Phase::Waiting | Phase::Acked(_));
    let same = |other: &Delivery| other.process == delivery.process && other.key == delivery.key;
    !world.deliveries.iter().any(|other| same(other) && busy(other))
}

/// Whether the gate of its process lets it in: beside others, a suspect alone.
fn may_enter(world: &World, index: usize) -> bool {
    let delivery = &world.deliveries[index];
    let mut inside = world
        .deliveries
        .iter()
        .enumerate()
        .filter(|(at, other)| *at != index && other.process == delivery.process)
        .filter(|(_, other)| other.phase == Phase::Running);
    if delivery.suspect { inside.next().is_none() } else { !inside.any(|(_, other)| other.alone) }
}

/// No timer that is due waits to be served.
fn can_tick(world: &World) -> bool {
    !world.deliveries.iter().any(|delivery| {
        let served = world.stalled[usize::from(delivery.process)] || delivery.left > 0;
        let due = match delivery.phase {
            Phase::Publishing(_) => !delivery.bereft,
            Phase::Gate | Phase::Running => true,
            Phase::Recording(_) => !delivery.slow,
            Phase::Waiting | Phase::Acked(_) => false,
        };
        due && !served
    })
}

fn tick(world: &mut World) {
    for index in 0..world.deliveries.len() {
        let delivery = world.deliveries[index];
        if delivery.left == 0 {
            bereave(world, index);
        }
        world.deliveries[index].left = delivery.left.saturating_sub(1);
    }
    leases(world, |left| left.saturating_sub(1));
}

/// Moves the end of all leases. One that ends while its claim runs alone is a death alone.
pub(super) fn leases(world: &mut World, to: impl Fn(u8) -> u8) {
    for key in &mut world.keys {
        if let Record::Claimed { left, mode, .. } = &mut key.record {
            if *left > 0 && to(*left) == 0 && *mode == 2 {
                key.deaths = (key.deaths + 1).min(2);
            }
            *left = to(*left);
        }
    }
    if let Some(before) = &mut world.unreplicated
        && let Record::Claimed { left, .. } = &mut before.record
    {
        *left = to(*left);
    }
}
