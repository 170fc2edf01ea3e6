//! The claim: two processes, messages that are delivered to both of them, and everything that goes wrong.
//!
//! The steps, time and faults are those of the [machine](crate::machine): a crash before and after each step, a stall, an
//! answer that is lost, an operation that arrives late, twice or never, a client that is cut off until its lease ends,
//! a rebalance at any point, an ack that is lost, a handler that fails, a wall clock and a store's clock that jump, a
//! failover that loses the last write, a record whose grace ends.
//!
//! # What has to hold
//!
//! In every state, with the number of the invariant in ARCHITECTURE.md:
//!
//! - *1: an ack has a reason*: the effect has happened, or a dead letter is confirmed.
//! - *2: completed stays completed*: nothing is written over a completed record, and once a delivery was acked for its
//!   effect the record is there. A store that lost the write is excepted, and only for that key.
//! - *2: the effect happens once*, unless the key is *excused*: a process died, or was cut off beyond its lease, between
//!   the effect (or the confirm of a dead letter) and its record; a handler outlived its lease, by a stall or a jump of
//!   the store's clock; or the store lost a write.
//! - *3: one unexpired claim*: no claim is given away before it ends, and whoever runs holds the claim of its key. Excepted
//!   is a delivery that a stall, a jump of the store's clock or a failover took the claim from while it ran, and one over
//!   whose claim the completion of such a delivery was recorded.
//! - *3: a foreign claim is not touched* by a release or a renewal.
//! - *4: epochs grow*: every claim of a key has an epoch above all before it, beyond the life of its record; a key of which
//!   the store lost a write is excepted.
//! - *6: only failures count*: the attempts that a record or a claim knows of are failed calls that happened, crashes are
//!   claims that ran alone and ended with their lease, and nothing is set aside without one or the other. So a rebalance,
//!   which is among the faults, counts nothing, unless the store hears nothing of it until the lease has ended, which
//!   cannot be told from a death. A failover may bring an older end of a lease back: excepted.
//! - *6: every message is settled in time*: from every state, the schedule without faults acks every delivery within N
//!   steps.
//!
//! # What is left out
//!
//! Payloads, and with them conflicts: all deliveries of a key have one. The limit of crashes is 1 instead of 3. A handler
//! that fails more than once in one claim is one that fails once more in the next. Renewals are sent when the client's
//! deadline has come and not at half of it. Which claims wait in one process for each other is in the redrive model, where
//! a process has two deliveries of a key.

use std::sync::Arc;

use stateright::Property;

use crate::{Ack, Delivery, End, Exploration, Key, Machine, Phase, Record, Rule, Variant, World};

/// Steps within which the schedule without faults settles two messages, with up to two faults before.
pub const WITHIN: u32 = 34;

/// The model with so many messages, each delivered to two processes, and so many faults.
pub fn model(variant: Variant, messages: u8, faults: u8) -> Exploration {
    let deliveries =
        (0..2).flat_map(|process| (0..messages).map(move |key| Delivery::new(process, key, 1, 0)));
    let start = World::new(deliveries.collect(), faults);
    Exploration {
        machine: Machine { variant, ways_back: None },
        start,
        properties,
        bound: WITHIN,
        longest: Arc::default(),
        symmetric: variant == Variant::Code && messages == 2,
    }
}

/// What has to hold, by the number of the invariant.
pub fn properties() -> Vec<Property<Exploration>> {
    vec![
        Property::<Exploration>::always("1: an ack has a reason", |_, world| {
            every(world, |key, delivery| match delivery.phase {
                Phase::Acked(Ack::Effect) => key.effects > 0,
                Phase::Acked(Ack::DeadLetter) => key.letters.iter().any(|letters| *letters > 0),
                Phase::Acked(Ack::Copy) => key.copies > 0,
                _ => true,
            })
        }),
        Property::<Exploration>::always("2: completed stays completed", |_, world| {
            world.broken != Some(Rule::Completed)
                && every(world, |key, delivery| {
                    delivery.phase != Phase::Acked(Ack::Effect) || key.lost || key.record == Record::Completed
                })
        }),
        Property::<Exploration>::always("2: the effect happens once", |_, world| {
            world.keys.iter().all(|key| key.effects <= 1 || key.excused)
        }),
        Property::<Exploration>::always("3: one unexpired claim", |_, world| {
            world.broken != Some(Rule::OneClaim)
                && (0..world.deliveries.len()).all(|index| {
                    let delivery = &world.deliveries[index];
                    let key = &world.keys[usize::from(delivery.key)];
                    // A completion is recorded whoever holds the claim: then somebody else had it without a lease.
                    let overtaken = key.record == Record::Completed && key.excused;
                    delivery.phase != Phase::Running || delivery.bereft || overtaken || world.holds(index)
                })
        }),
        Property::<Exploration>::always("3: a foreign claim is not touched", |_, world| {
            world.broken != Some(Rule::Foreign)
        }),
        Property::<Exploration>::always("4: epochs grow", |_, world| world.broken != Some(Rule::Epoch)),
        Property::<Exploration>::always("6: only failures count", |_, world| {
            every(world, |key, delivery| {
                let numbers = key.record.numbers();
                let counted = numbers.is_none_or(|n| n.attempts <= key.failures && n.crashes <= key.deaths);
                let reasons = key.failures > 0 || key.deaths > 0;
                let set_aside = delivery.phase == Phase::Publishing(End::DeadLettered);
                delivery.attempts <= key.failures && (counted && (!set_aside || reasons) || key.lost)
            })
        }),
        Property::<Exploration>::always("6: every message is settled in time", |model, world| {
            model.settles(world)
        }),
    ]
}

fn every(world: &World, holds: impl Fn(&Key, &Delivery) -> bool) -> bool {
    world.deliveries.iter().all(|delivery| holds(&world.keys[usize::from(delivery.key)], delivery))
}
