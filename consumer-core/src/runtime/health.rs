//! How a consumer is, for probes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Tells how a running consumer is. Clones look at the same consumer.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<Vitals>>);

#[derive(Debug)]
struct Vitals {
    wedged_after: Duration,
    connected: bool,
    paused: bool,
    stopping: bool,
    ended: bool,
    held: usize,
    executing: usize,
    last_progress: Option<Instant>,
}

/// What a probe is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Restarting the process would not help. False when deliveries execute and none has finished for too long: a
    /// broker keeps a consumer whose polling goes on, so a wedged handler shows here and nowhere else.
    pub live: bool,
    /// Messages are taken: connected, not paused, not stopping.
    pub ready: bool,
    /// Why not, in words.
    pub reason: Option<String>,
    /// Deliveries held.
    pub held: usize,
    /// Deliveries executing, that is held and not waiting for a backoff, a rate, a store or another message.
    pub executing: usize,
    /// Time since the last delivery was settled, if something is held.
    pub since_last_settle: Option<Duration>,
}

impl Health {
    pub(super) fn new(wedged_after: Duration) -> Self {
        Self(Arc::new(Mutex::new(Vitals {
            wedged_after,
            connected: false,
            paused: false,
            stopping: false,
            ended: false,
            held: 0,
            executing: 0,
            last_progress: None,
        })))
    }

    fn with<T>(&self, apply: impl FnOnce(&mut Vitals) -> T) -> T {
        apply(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_wedged_after(&self, limit: Duration) {
        self.with(|vitals| vitals.wedged_after = limit);
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.with(|vitals| vitals.connected = connected);
    }

    pub(super) fn set_stopping(&self) {
        self.with(|vitals| vitals.stopping = true);
    }

    pub(super) fn set_ended(&self) {
        self.with(|vitals| vitals.ended = true);
    }

    /// Once for each round of the driver. Answers how many seconds nothing was settled while something was held.
    pub(super) fn observe(&self, held: usize, executing: usize, paused: bool, settled: bool) -> f64 {
        self.with(|vitals| {
            let now = Instant::now();
            if settled || vitals.held == 0 || vitals.executing == 0 {
                vitals.last_progress = Some(now);
            }
            vitals.held = held;
            vitals.executing = executing;
            vitals.paused = paused;
            vitals.last_progress.filter(|_| held > 0).map_or(0.0, |at| (now - at).as_secs_f64())
        })
    }

    /// How the consumer is now.
    pub fn status(&self) -> Status {
        self.with(|vitals| {
            let since = vitals.last_progress.filter(|_| vitals.held > 0).map(|at| at.elapsed());
            let wedged =
                since.filter(|since| vitals.executing > 0 && *since >= vitals.wedged_after && !vitals.ended);
            let reason = if let Some(since) = wedged {
                let executing = vitals.executing;
                Some(format!("no delivery was finished for {} s while {executing} execute", since.as_secs()))
            } else if vitals.ended {
                Some("the consumer has ended".to_owned())
            } else if vitals.stopping {
                Some("the consumer is stopping".to_owned())
            } else if !vitals.connected {
                Some("the source is not connected".to_owned())
            } else if vitals.paused {
                Some("paused: the stack is not ready, a backend it needs may be away".to_owned())
            } else {
                None
            };
            Status {
                live: wedged.is_none() && !vitals.ended,
                ready: reason.is_none(),
                reason,
                held: vitals.held,
                executing: vitals.executing,
                since_last_settle: since,
            }
        })
    }
}
