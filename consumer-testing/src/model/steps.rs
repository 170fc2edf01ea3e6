//! What may happen, at random.

use std::time::Duration;

use consumer_core::dedup::{Mode, ParkOperation, Resolution};
use proptest::{option, prelude::*};

pub(super) const PROCESSES: usize = 3;
pub(super) const KEYS: usize = 2;

/// One thing that happens in a random sequence.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Step {
    /// A process receives a message and claims its key.
    Receive {
        /// Which process.
        process: usize,
        /// Which key.
        key: usize,
        /// The fingerprint of the payload.
        payload: Option<u128>,
        /// The attempt that the message asks for.
        attempt: u32,
        /// How often it was redriven.
        redrive: u32,
        /// Whether the reply to the claim is lost, and the claim asked for again.
        lost: bool,
    },
    /// A claim whose reply was lost is asked for once more, later.
    AskAgain {
        /// Which one.
        which: usize,
    },
    /// A claim is resolved, be it still held or not.
    Resolve {
        /// Which one.
        which: usize,
        /// As what.
        resolution: Resolution,
        /// Whether the reply is lost.
        lost: bool,
        /// Whether the owner goes on as if nothing had happened: a stalled one, or one that asks twice.
        keep: bool,
    },
    /// A claim is renewed.
    Renew {
        /// Which one.
        which: usize,
        /// Calls that failed since it was claimed.
        failed: u32,
        /// How it runs.
        mode: Mode,
        /// Whether the reply is lost.
        lost: bool,
    },
    /// Something is asked of the list of those that wait of a message key.
    Park {
        /// For which message.
        id: u128,
        /// What.
        operation: Parking,
        /// Whether the reply is lost, and it is asked once more.
        lost: bool,
    },
    /// A process dies and another takes its place.
    Crash {
        /// Which process.
        process: usize,
    },
    /// Time passes, in tenths of a lease.
    Pass {
        /// How many.
        ticks: u32,
    },
}

/// What is asked of a list of parked messages.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Parking {
    /// Is it this message's turn? Three may wait.
    Enter,
    /// It waits for its retry.
    Defer {
        /// For so many tenths of a lease.
        ticks: u32,
    },
    /// It is done with.
    Leave,
}

impl Parking {
    pub(super) fn over(self, tick: Duration) -> ParkOperation {
        match self {
            Parking::Enter => ParkOperation::Enter { limit: 3 },
            Parking::Defer { ticks } => ParkOperation::Defer { wait: tick * ticks },
            Parking::Leave => ParkOperation::Leave,
        }
    }
}

fn parking() -> impl Strategy<Value = Parking> {
    prop_oneof![
        4 => Just(Parking::Enter),
        2 => (0..8_u32).prop_map(|ticks| Parking::Defer { ticks }),
        2 => Just(Parking::Leave),
    ]
}

fn resolution() -> impl Strategy<Value = Resolution> {
    prop_oneof![
        2 => Just(Resolution::Completed),
        1 => (0..3_u32).prop_map(|attempts| Resolution::Returned { attempts }),
        2 => (1..4_u32).prop_map(|attempts| Resolution::Failed { attempts }),
        1 => Just(Resolution::DeadLettered),
        1 => (2..5_u32).prop_map(|attempt| Resolution::Deferred { attempt }),
    ]
}

fn lost() -> impl Strategy<Value = bool> {
    prop_oneof![4 => Just(false), 1 => Just(true)]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Normal), Just(Mode::Suspect), Just(Mode::Alone)]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let payload = option::weighted(0.8, prop_oneof![4 => Just(1_u128), 1 => Just(2)]);
    let attempt = prop_oneof![3 => Just(1_u32), 2 => 2..5_u32];
    let redrive = prop_oneof![3 => Just(0_u32), 1 => 1..3_u32];
    let ticks = prop_oneof![4 => 1..6_u32, 3 => 11..14_u32, 1 => Just(32_u32), 1 => Just(45)];
    prop_oneof![
        8 => (0..PROCESSES, 0..KEYS, payload, attempt, redrive, lost()).prop_map(
            |(process, key, payload, attempt, redrive, lost)| {
                Step::Receive { process, key, payload, attempt, redrive, lost }
            }
        ),
        1 => (0..8_usize).prop_map(|which| Step::AskAgain { which }),
        4 => (0..8_usize, resolution(), lost(), lost())
            .prop_map(|(which, resolution, lost, keep)| Step::Resolve { which, resolution, lost, keep }),
        3 => (0..8_usize, 0..3_u32, mode(), lost())
            .prop_map(|(which, failed, mode, lost)| Step::Renew { which, failed, mode, lost }),
        4 => (1..6_u128, parking(), lost()).prop_map(|(id, operation, lost)| Step::Park { id, operation, lost }),
        1 => (0..PROCESSES).prop_map(|process| Step::Crash { process }),
        5 => ticks.prop_map(|ticks| Step::Pass { ticks }),
    ]
}
