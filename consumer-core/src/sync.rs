//! What threads share, and time. Under `--cfg shuttle` a scheduler puts its own in their place and tries one order of the
//! threads after another: see `cargo xtask concurrency`.

#[cfg(not(shuttle))]
pub(crate) use self::real::{now, sleep, sleep_until, spawn};
#[cfg(shuttle)]
pub(crate) use self::scheduled::{now, sleep, sleep_until, spawn};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, shuttle))]
#[path = "../../concurrency/src/explore.rs"]
pub(crate) mod explore;

#[cfg(not(shuttle))]
mod real {
    use std::future::Future;

    pub(crate) use tokio::time::{sleep, sleep_until};
    use tokio::{runtime::Handle, time::Instant};

    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Runs a task on the runtime that this is called in. Outside of one the task is dropped.
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

#[cfg(shuttle)]
mod scheduled {
    use std::{cell::Cell, future::Future, time::Duration};

    use tokio::time::Instant;

    thread_local! {
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// A clock that stands still until somebody has slept.
    pub(crate) fn now() -> Instant {
        NOW.get().unwrap_or_else(|| {
            NOW.set(Some(Instant::now()));
            now()
        })
    }

    /// Ends whenever the scheduler likes, and then it is as late as was asked for.
    pub(crate) async fn sleep_until(until: Instant) {
        shuttle::future::yield_now().await;
        NOW.set(Some(now().max(until)));
    }

    pub(crate) async fn sleep(wait: Duration) {
        sleep_until(now() + wait).await;
    }

    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        drop(shuttle::future::spawn(task));
    }
}
