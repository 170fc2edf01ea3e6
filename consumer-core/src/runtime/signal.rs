//! Signals that ask a process to stop.

use std::future::Future;

/// Resolves at the first SIGINT or SIGTERM (Ctrl-C where there are no Unix signals).
///
/// Handlers are installed by the call. From then on the default action of these signals is off for the whole process:
/// await it again for a second signal.
///
/// # Panics
/// Outside a tokio runtime.
///
/// # Cancel safety
/// Dropping the future loses no signal for other futures of this function.
pub fn terminate() -> impl Future<Output = ()> + Send + 'static {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt());
        let terminate = signal(SignalKind::terminate());
        async move {
            match (interrupt, terminate) {
                (Ok(mut interrupt), Ok(mut terminate)) => {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                }
                _ => {
                    tracing::error!(
                        "signal handlers could not be installed: this process has to be killed to stop"
                    );
                    std::future::pending().await
                }
            }
        }
    }
    #[cfg(not(unix))]
    async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
