//! The machine as a model of stateright.

use std::{
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use super::{
    step::{Action, Machine},
    world::World,
};

/// A machine, where it starts, and what has to hold.
#[derive(Debug, Clone)]
pub struct Exploration {
    /// The rules.
    pub machine: Machine,
    /// Where it starts.
    pub start: World,
    /// What has to hold.
    pub properties: fn() -> Vec<Property<Exploration>>,
    /// The steps in which the schedule without faults has to settle everything.
    pub bound: u32,
    /// The most that it has taken.
    pub longest: Arc<AtomicU32>,
    /// Whether worlds that differ only in the names of processes and keys are one. The deliveries are then those of two
    /// keys to two processes, in order.
    pub symmetric: bool,
}

/// What an exploration has found.
#[derive(Debug)]
pub struct Explored {
    /// How many states there are.
    pub states: usize,
    /// The most steps from the start to a state, by the shortest way.
    pub depth: usize,
    /// The most steps that the schedule without faults has taken.
    pub longest: u32,
    /// The properties that do not hold, each with the steps that show it.
    pub broken: Vec<(&'static str, Vec<String>)>,
}

impl Explored {
    /// Visits every state of a model, or stops soon after one that breaks a property.
    pub fn of<M>(model: M, longest: &AtomicU32) -> Self
    where
        M: Model + Send + Sync + 'static,
        M::State: Debug + Hash + Clone + PartialEq + Send + Sync + 'static,
        M::Action: Debug + Clone + PartialEq,
    {
        let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let steps = |path: Path<M::State, M::Action>| {
            path.into_actions().iter().map(|action| format!("{action:?}")).collect()
        };
        let broken = checker.discoveries().into_iter().map(|(name, path)| (name, steps(path))).collect();
        Explored {
            states: checker.unique_state_count(),
            depth: checker.max_depth() - 1,
            longest: longest.load(Ordering::Relaxed),
            broken,
        }
    }
}

impl Exploration {
    /// Visits every state.
    pub fn explore(self) -> Explored {
        let longest = self.longest.clone();
        Explored::of(self, &longest)
    }

    /// Whether the schedule without faults settles everything in time.
    pub fn settles(&self, world: &World) -> bool {
        let taken = self.machine.settles(world, self.bound);
        self.longest.fetch_max(taken.unwrap_or(0), Ordering::Relaxed);
        taken.is_some()
    }
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        self.machine.steps(world, actions);
        let mut faults = Vec::new();
        self.machine.faults(world, &mut faults);
        actions.extend(faults.into_iter().map(Action::Fault));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.machine.apply(world, action);
        if next == *world {
            return None;
        }
        Some(if self.symmetric { least_of_its_kind(next) } else { next })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        (self.properties)()
    }
}

/// Of the worlds that are this one by other names, the first in order.
fn least_of_its_kind(world: World) -> World {
    let others = [(true, false), (false, true), (true, true)];
    let others = others.map(|(processes, keys)| renamed(&world, processes, keys));
    others.into_iter().fold(world, World::min)
}

/// With the names of the two processes, or of the two keys, changed for each other.
fn renamed(world: &World, processes: bool, keys: bool) -> World {
    let (p, k) = (u8::from(processes), u8::from(keys));
    let place = |index: usize| index ^ usize::from(2 * p + k);
    let mut new = world.clone();
    for (index, delivery) in world.deliveries.iter().enumerate() {
        let renamed = &mut new.deliveries[place(index)];
        *renamed = *delivery;
        renamed.process ^= p;
        renamed.key ^= k;
    }
    if keys {
        new.keys.swap(0, 1);
        new.late.iter_mut().for_each(|late| late.key ^= 1);
        new.letters.iter_mut().for_each(|letter| letter.key ^= 1);
        new.unreplicated.iter_mut().for_each(|before| before.key ^= 1);
    }
    if processes {
        new.stalled.swap(0, 1);
        new.ahead.swap(0, 1);
    }
    for owner in new.owners() {
        if owner.process < 2 {
            owner.process ^= p;
            if owner.claim < 4 {
                owner.claim = u8::try_from(place(owner.claim.into())).unwrap_or(owner.claim);
            }
        }
    }
    new.renumber();
    new
}
