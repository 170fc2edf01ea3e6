//! The protocols as models that are explored exhaustively, with [stateright](https://docs.rs/stateright).
//!
//! - [`claim`]: two processes and a store, with every fault of the network, of clocks, of processes and of the store.
//! - [`redrive`]: delayed copies, dead letters, and the operator who sends them back.
//! - [`watermark`]: what a member of a Kafka group may commit, over rebalances.
//!
//! The decisions in them are made by the code itself: `consumer_core::dedup::protocol::transition`,
//! `consumer_core::dead_letters::redriven`, and the tracker of `consumer-kafka`, a file that needs no Kafka and is compiled
//! here once more, so that the models need none either.
//!
//! That messages are settled is checked in every state that can be reached: from there, the [schedule without
//! faults](Machine::settles) is followed and must come to its end within a number of steps. So it is an `always` property,
//! which an exhaustive search can decide. `docs/models.md` has the bounds, the numbers of states and the steps; the tests
//! compare them with what they find. Each [mistake](Variant) that a model knows must be found by it.

pub mod claim;
pub mod machine;
pub mod redrive;
#[path = "../../consumer-kafka/src/tracker.rs"]
#[allow(dead_code, reason = "the model asks for less than the source does")]
mod tracker;
pub mod watermark;

pub use machine::{
    Ack, Action, Back, Delivery, End, Exploration, Explored, Fault, Key, Late, Letter, Machine, Owner, Phase,
    Record, Rule, Variant, World,
};
