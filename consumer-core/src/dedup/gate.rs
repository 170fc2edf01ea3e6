//! Who may execute in this process: many together, or one suspect alone.

use std::sync::{Arc, OnceLock};

use tokio::sync::{Notify, Semaphore, futures::Notified};

const ALL: u32 = 1 << 20;

/// Lets ordinary messages execute side by side and a crash suspect alone.
///
/// All dedup layers of a process share one gate by default, because a crash takes all of them along. The order is
/// first come, first served, so a suspect waits for what executes now and not for what comes later.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Places>);

#[derive(Debug)]
struct Places {
    free: Semaphore,
    /// Tells whenever somebody who waited has got a place.
    placed: Notify,
}

/// What a message holds of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Outside,
    Shared,
    Alone,
}

impl Gate {
    /// A gate of its own. Only for tests and for stacks that cannot crash each other.
    pub fn new() -> Self {
        Self(Arc::new(Places { free: Semaphore::new(ALL as usize), placed: Notify::new() }))
    }

    /// The gate of this process.
    pub fn process_wide() -> Self {
        static GATE: OnceLock<Gate> = OnceLock::new();
        GATE.get_or_init(Gate::new).clone()
    }

    /// Waits for a place. The pass must be given back through [`leave`](Self::leave).
    pub(crate) async fn enter(&self, alone: bool) -> Pass {
        let (permits, pass) = if alone { (ALL, Pass::Alone) } else { (1, Pass::Shared) };
        // The semaphore is never closed.
        if let Ok(permit) = self.0.free.acquire_many(permits).await {
            permit.forget();
        }
        pass
    }

    /// Resolves when somebody who waited has got a place.
    pub(super) fn placed(&self) -> Notified<'_> {
        self.0.placed.notified()
    }

    /// A message has put its place where its other waits find it.
    pub(super) fn has_placed(&self) {
        self.0.placed.notify_waiters();
    }

    /// A place beside others, if nobody has to be waited for.
    pub(crate) fn try_enter(&self) -> Option<Pass> {
        self.0.free.try_acquire().ok().map(|permit| {
            permit.forget();
            Pass::Shared
        })
    }

    pub(crate) fn leave(&self, pass: Pass) {
        match pass {
            Pass::Outside => {}
            Pass::Shared => self.0.free.add_permits(1),
            Pass::Alone => self.0.free.add_permits(ALL as usize),
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
