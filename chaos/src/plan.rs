//! Which faults come, and when: decided by the seed alone.

use std::{fmt, time::Duration};

use crate::{CONSUMERS, LEASE, random::Random};

/// What happens in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Whether the consumers keep the order of each key.
    pub(crate) ordered: bool,
    pub(crate) cycles: Vec<Cycle>,
}

/// One fault and its recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cycle {
    /// How long all is well before, so that the fault meets the work at any point.
    pub(crate) lead: Duration,
    pub(crate) fault: Fault,
}

/// One fault. Each ends by itself; what it takes to work again afterwards is not said here but looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; another one is started at once.
    KillConsumer { slot: usize },
    /// SIGKILL after it could not reach the store for a while: what it has done is not recorded.
    KillCutOff { slot: usize, length: Duration },
    /// SIGKILL of all at the same time.
    KillConsumers,
    /// SIGSTOP, and SIGCONT after more than a lease.
    StopConsumer { slot: usize, length: Duration },
    /// SIGTERM; another one is started when it has ended.
    Leave { slot: usize },
    /// One more joins, and leaves after a while.
    Join { length: Duration },
    /// SIGKILL, and a start after `away`.
    KillServer { end: End, away: Duration },
    /// Connections are reset, and none is taken for `away`.
    Cut { end: End, away: Duration },
    /// Nothing gets through, in either direction.
    Hang { end: End, length: Duration },
    /// Everything comes `by` later.
    Delay { end: End, by: Duration, length: Duration },
    /// Each connection passes so many bytes a second.
    Throttle { end: End, bytes: u64, length: Duration },
}

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Those of all consumers to the broker.
    Broker,
    /// Those of all consumers to the store.
    Store,
    /// Those of one consumer to the store, which the others still reach.
    StoreOf(usize),
}

/// Kinds of faults; as often in a bag as they should come.
#[derive(Debug, Clone, Copy)]
enum Kind {
    KillConsumer,
    KillCutOff,
    KillConsumers,
    StopConsumer,
    Leave,
    Join,
    KillBroker,
    KillStore,
    CutBroker,
    CutStore,
    HangBroker,
    HangStore,
    DelayBroker,
    DelayStore,
    ThrottleBroker,
    ThrottleStore,
}

const BAG: [Kind; 20] = [
    Kind::KillConsumer,
    Kind::KillConsumer,
    Kind::KillCutOff,
    Kind::KillConsumers,
    Kind::StopConsumer,
    Kind::StopConsumer,
    Kind::Leave,
    Kind::Leave,
    Kind::Join,
    Kind::KillBroker,
    Kind::KillStore,
    Kind::KillStore,
    Kind::CutBroker,
    Kind::CutStore,
    Kind::HangBroker,
    Kind::HangStore,
    Kind::DelayBroker,
    Kind::DelayStore,
    Kind::ThrottleBroker,
    Kind::ThrottleStore,
];

impl Plan {
    /// Unless `ordered` is given, the seed decides that too.
    pub(crate) fn new(seed: u64, cycles: usize, ordered: Option<bool>) -> Self {
        let mut random = Random::new(seed, 1);
        let ordered = ordered.unwrap_or(seed % 2 == 1);
        let mut bag = Vec::new();
        let mut cycle = || {
            // Without putting back: even a short run has faults of many kinds.
            let kind = bag.pop().unwrap_or_else(|| {
                bag.extend(BAG);
                random.shuffle(&mut bag);
                bag.pop().unwrap_or(Kind::KillConsumer)
            });
            Cycle { lead: random.millis(100, 900), fault: Fault::random(kind, &mut random) }
        };
        Self { seed, ordered, cycles: (0..cycles).map(|_| cycle()).collect() }
    }
}

impl Fault {
    fn random(kind: Kind, random: &mut Random) -> Self {
        let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        let slot = random.below(CONSUMERS);
        let store = if random.percent(50) { End::Store } else { End::StoreOf(slot) };
        let length = random.millis(1_500, 3_500);
        let by = random.millis(50, 400);
        match kind {
            Kind::KillConsumer => Self::KillConsumer { slot },
            Kind::KillCutOff => Self::KillCutOff { slot, length: random.millis(50, lease / 2) },
            Kind::KillConsumers => Self::KillConsumers,
            Kind::StopConsumer => {
                Self::StopConsumer { slot, length: random.millis(lease + 500, lease + 4_000) }
            }
            Kind::Leave => Self::Leave { slot },
            Kind::Join => Self::Join { length },
            Kind::KillBroker => Self::KillServer { end: End::Broker, away: random.millis(0, 2_000) },
            Kind::KillStore => Self::KillServer { end: End::Store, away: random.millis(0, lease + 1_500) },
            Kind::CutBroker => Self::Cut { end: End::Broker, away: at_once_or(random, 2_000) },
            Kind::CutStore => Self::Cut { end: store, away: at_once_or(random, lease + 2_000) },
            Kind::HangBroker => Self::Hang { end: End::Broker, length: random.millis(500, 6_000) },
            Kind::HangStore => Self::Hang { end: store, length: random.millis(500, lease + 2_500) },
            Kind::DelayBroker => Self::Delay { end: End::Broker, by, length },
            Kind::DelayStore => Self::Delay { end: store, by, length },
            Kind::ThrottleBroker => {
                Self::Throttle { end: End::Broker, bytes: 8_000 + random.below(32_000) as u64, length }
            }
            Kind::ThrottleStore => {
                Self::Throttle { end: store, bytes: 4_000 + random.below(16_000) as u64, length }
            }
        }
    }

    /// The kind, for counting.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::KillConsumer { .. } | Self::KillCutOff { .. } | Self::KillConsumers => "kill",
            Self::StopConsumer { .. } => "stop",
            Self::Leave { .. } | Self::Join { .. } => "rebalance",
            Self::KillServer { end: End::Broker, .. } => "kill_broker",
            Self::KillServer { .. } => "kill_store",
            Self::Cut { .. } => "cut",
            Self::Hang { .. } => "hang",
            Self::Delay { .. } => "delay",
            Self::Throttle { .. } => "throttle",
        }
    }
}

/// In half of the cases clients may come back at once.
fn at_once_or(random: &mut Random, longest: u64) -> Duration {
    let away = random.millis(200, longest);
    if random.percent(50) { Duration::ZERO } else { away }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillConsumer { slot } => write!(f, "consumer {slot}: SIGKILL"),
            Self::KillCutOff { slot, length } => {
                write!(f, "consumer {slot}: SIGKILL, without the store for {} before", seconds(*length))
            }
            Self::KillConsumers => f.write_str("all consumers: SIGKILL"),
            Self::StopConsumer { slot, length } => {
                write!(f, "consumer {slot}: SIGSTOP for {}", seconds(*length))
            }
            Self::Leave { slot } => write!(f, "consumer {slot}: SIGTERM, another joins"),
            Self::Join { length } => write!(f, "consumer {CONSUMERS}: joins for {}", seconds(*length)),
            Self::KillServer { end, away } => write!(f, "{end}: SIGKILL, back after {}", seconds(*away)),
            Self::Cut { end, away } => write!(f, "{end}: connections cut for {}", seconds(*away)),
            Self::Hang { end, length } => write!(f, "{end}: connections hang for {}", seconds(*length)),
            Self::Delay { end, by, length } => {
                write!(f, "{end}: {} ms of delay for {}", by.as_millis(), seconds(*length))
            }
            Self::Throttle { end, bytes, length } => {
                write!(f, "{end}: {bytes} bytes/s for {}", seconds(*length))
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("broker"),
            Self::Store => f.write_str("store"),
            Self::StoreOf(slot) => write!(f, "store of consumer {slot}"),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_gives_its_plan_again_and_a_longer_run_begins_alike() {
        let plan = Plan::new(7, 30, None);
        assert_eq!(plan, Plan::new(7, 30, None));
        assert_eq!(plan.cycles[..12], Plan::new(7, 12, None).cycles);
        assert_ne!(plan.cycles, Plan::new(9, 30, None).cycles);
    }

    #[test]
    fn as_many_cycles_as_the_bag_holds_have_every_kind() {
        let kinds: HashSet<_> = Plan::new(3, BAG.len(), None).cycles.iter().map(|c| c.fault.name()).collect();
        assert_eq!(kinds.len(), 9, "{kinds:?}");
    }

    #[test]
    fn the_few_cycles_of_the_ci_have_every_kind_between_them() {
        // Those of `cargo xtask test`.
        let seeds = [813, 108, 107, 296];
        let cycles = seeds.into_iter().flat_map(|seed| Plan::new(seed, 4, None).cycles);
        let kinds: HashSet<_> = cycles.map(|cycle| cycle.fault.name()).collect();
        assert_eq!(kinds.len(), 9, "{kinds:?}");
    }

    #[test]
    fn a_stop_is_longer_than_the_lease() {
        for cycle in Plan::new(1, 400, None).cycles {
            if let Fault::StopConsumer { length, .. } = cycle.fault {
                assert!(length > LEASE);
            }
        }
    }
}
