//! Workers, a store and a broker, as the models of the claim and of the way back share them.
//!
//! A worker does here what `consumer-core`'s `dedup/service.rs` and `ask.rs` do, in the same order: claim, take a place in the gate,
//! run, record, ack; a failure goes through the dead-letter layer or the delayed retry, and the runtime presents again
//! what was handed back. Every decision of the store is made by
//! [`transition`](consumer_core::dedup::protocol::transition).
//!
//! # What a step is
//!
//! A step is what others can see: an operation in the store, an effect, a confirm, an ack, a tick of the clock. What a
//! worker does alone is put together with the step it follows, since it commutes with all that others do meanwhile. So
//! an operation and the receipt of its answer are one step, and these faults stand for what the network does between:
//! the answer is lost and the operation sent again ([`Fault::LoseReply`]); a copy of it stays on its way and arrives at
//! any later time, or never ([`Fault::Repeat`], and a crash leaves behind what was on its way); it is held up beyond the
//! lease ([`Fault::Slow`]). An answer that is late is one that is lost: a claim that was granted too late is asked for
//! again, by `is_too_slow`. A crash between the last answer and the ack is a crash that takes the ack with it
//! ([`Fault::Crash`] with `redelivers`).
//!
//! # Time
//!
//! A lease is two ticks in the store, and one for its client, which stops that much earlier. Time is relative: a record
//! has the ticks that are left. The clock does not tick while a timer that is due has not been served: a client renews
//! its claim or stops, unless the process is stalled ([`Fault::Stall`]); a request that records an end arrives within
//! the lease, unless it is slow. Everything else may be arbitrarily slow.
//!
//! # Faults
//!
//! Each kind may happen at any point, in any order, as often as [`World::faults`] allows in all. A handler that fails is
//! among them, because it makes a run longer.

mod explore;
mod fair;
mod fault;
mod record;
mod step;
mod store;
#[cfg(test)]
mod tests;
mod world;

pub use explore::{Exploration, Explored};
pub use fault::Fault;
pub use record::{LEASE, Owner, Record};
pub use step::{Action, Back, Machine};
pub use store::Variant;
pub use world::{Ack, Delivery, End, Key, Late, Letter, Phase, Rule, World};
