//! The schedule without faults, which has to settle every message from wherever it starts.

use super::{
    step::{Action, Machine},
    world::World,
};

impl Machine {
    /// How many steps it takes until nothing is left to do; `None` when that is more than `bound`.
    ///
    /// In turn: what is on its way arrives, stalled processes go on, each delivery and each dead letter gets one step on,
    /// and the clock ticks. Handlers succeed. A step that leads nowhere, as asking for a key that is busy, counts.
    pub fn settles(&self, world: &World, bound: u32) -> Option<u32> {
        let mut world = world.clone();
        world.faults = 0;
        let mut taken = 0;
        while !world.is_settled() {
            if taken > bound {
                return None;
            }
            let mut go = |world: &mut World, action| {
                self.step(world, action);
                taken += 1;
            };
            while !world.late.is_empty() {
                go(&mut world, Action::Arrive(0));
            }
            for process in 0..2_u8 {
                if world.stalled[usize::from(process)] {
                    go(&mut world, Action::Resume(process));
                }
            }
            for index in 0..world.deliveries.len() {
                if let Some(action) = self.next_of(&world, index) {
                    go(&mut world, action);
                } else if world.deliveries[index].has_deadline() && world.deliveries[index].left == 0 {
                    go(&mut world, Action::Renew(index));
                }
            }
            if self.ways_back.is_some() {
                for index in (0..world.letters.len()).rev() {
                    let published = world.letters[index].published;
                    go(&mut world, if published { Action::Settle(index) } else { Action::Redrive(index) });
                }
            }
            go(&mut world, Action::Tick);
        }
        Some(taken).filter(|taken| *taken <= bound)
    }
}
