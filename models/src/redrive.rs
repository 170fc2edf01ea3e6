//! The ways back: delayed copies, dead letters, and the operator's redrive.
//!
//! One message, delivered to both of two processes, with the workers and the store of [`crate::claim`] and all
//! their faults. Beyond that a failed handler may leave a delayed copy behind, which is delivered like any message;
//! every dead letter is read by an operator, who publishes what [`redriven`] makes of it and settles the letter after
//! the confirm; and the operator's program may die between the two, so that a letter goes back twice. What comes back
//! goes to the two processes in turn.
//!
//! # What has to hold
//!
//! All that holds of a claim, and
//!
//! - *1: no message is lost*: until the effect has happened, the message is somewhere: in a delivery that is not acked,
//!   or in a letter that is not settled.
//! - *2: a redrive is one run more*: of each redrive count there is one dead letter, however many copies of the message
//!   with that count there are; unless the key is excused, as in the claim.
//! - *6: every message is settled in time*: from every state, the schedule without faults acks every delivery and redrives
//!   and settles every letter, within N steps. Together with the first that means: the effect has happened.
//!
//! # What is left out
//!
//! When a copy is due is any time; that it does not come *before* is the adapters' part. Retention outlasts the way back,
//! as the docs demand. The order of a message key over delayed copies (`dedup/parking.rs`) has a model of its own in the
//! random tests of the stores.

use std::{sync::Arc, time::SystemTime};

use consumer_core::{
    Message,
    dead_letters::{DeadLetter, Place, redriven},
};
use stateright::Property;

use crate::{Back, Delivery, Exploration, Machine, Variant, World, claim};

/// Steps within which the schedule without faults settles everything, with up to three faults before.
pub const WITHIN: u32 = 34;

/// The model with so many faults.
pub fn model(variant: Variant, faults: u8) -> Exploration {
    let deliveries = vec![Delivery::new(0, 0, 1, 0), Delivery::new(1, 0, 1, 0)];
    Exploration {
        machine: Machine { variant, ways_back: Some([0, 1, 2].map(back)) },
        start: World::new(deliveries, faults),
        properties,
        bound: WITHIN,
        longest: Arc::default(),
        symmetric: false,
    }
}

/// What the operator publishes for a letter that was redriven so often, whatever attempt it had come to.
fn back(redrive: u8) -> Back {
    let message = Message::builder()
        .payload("x")
        .header("dead-letter-reason", "permanent")
        .header("retry-attempt", "2")
        .header("redrive-count", redrive.to_string());
    let letter = DeadLetter::new(Place { scope: 0, seq: 0 }, message.build());
    let headers =
        redriven(&letter, Some("orders".into()), SystemTime::UNIX_EPOCH).map(|message| message.headers());
    let number = |name| headers.as_ref().ok().and_then(|headers| headers.get_str(name)?.parse().ok());
    Back { attempt: number("retry-attempt").unwrap_or(1), redrive: number("redrive-count").unwrap_or(0) }
}

fn properties() -> Vec<Property<Exploration>> {
    let mut properties = claim::properties();
    properties.push(Property::<Exploration>::always("1: no message is lost", |_, world| {
        world.is_settled() <= world.keys.iter().all(|key| key.effects > 0)
    }));
    properties.push(Property::<Exploration>::always("2: a redrive is one run more", |_, world| {
        world.keys.iter().all(|key| key.excused || key.letters.iter().all(|letters| *letters <= 1))
    }));
    properties
}
