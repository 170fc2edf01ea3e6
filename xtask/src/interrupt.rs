//! Ctrl-C: the command that runs is stopped with all its children, and the task returns in order, so that its servers
//! are dropped on the way out.

use crate::stop::Stop;
use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Tells whether SIGINT, SIGTERM or SIGHUP came, and runs commands that end with them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: u32,
    /// The process group of the command that runs now.
    group: Option<u32>,
}

impl Interrupt {
    /// Takes over the process's signals.
    pub(crate) fn install() -> Result<Self, Stop> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || handler.request())
            .map_err(|error| Stop::failed(format!("signals cannot be handled: {error}")))?;
        Ok(interrupt)
    }

    /// What a signal does: the first asks what runs now to end, a second one kills it.
    fn request(&self) {
        let mut state = self.lock();
        state.requests += 1;
        if let Some(group) = state.group {
            let signal = if state.requests == 1 { "TERM" } else { "KILL" };
            let _ = Command::new("sh").args(["-c", &format!("kill -s {signal} -- -{group}")]).status();
        }
        self.shared.changed.notify_all();
    }

    /// An error if a signal has come.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.lock().requests > 0 { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Waits for a signal; says whether one came in that time.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let none_yet = |state: &mut State| state.requests == 0;
        let waited = self.shared.changed.wait_timeout_while(self.lock(), timeout, none_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0.requests > 0
    }

    /// Runs a command to its end, in a process group of its own, without input.
    pub(crate) fn run(&self, command: &mut Command) -> Result<ExitStatus, Stop> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |error| Stop::failed(format!("{program} cannot be run: {error}"));
        command.stdin(Stdio::null()).process_group(0);
        // Under the lock, so that a signal comes either before the start or when the group is known.
        let mut state = self.lock();
        if state.requests > 0 {
            return Err(Stop::Interrupted);
        }
        let mut child = command.spawn().map_err(failed)?;
        state.group = Some(child.id());
        drop(state);
        let status = child.wait();
        self.lock().group = None;
        self.check()?;
        status.map_err(failed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_request_ends_the_command_and_its_children() {
        let interrupt = Interrupt::default();
        let outcome = thread::scope(|scope| {
            let running = scope.spawn(|| interrupt.run(Command::new("sh").args(["-c", "sleep 600; true"])));
            while interrupt.lock().group.is_none() {
                thread::yield_now();
            }
            interrupt.request();
            running.join().unwrap()
        });
        assert_eq!(outcome, Err(Stop::Interrupted));
        assert!(interrupt.wait(Duration::ZERO));
    }

    #[test]
    fn nothing_starts_after_a_request() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.wait(Duration::ZERO));
        interrupt.request();
        assert_eq!(interrupt.run(&mut Command::new("true")), Err(Stop::Interrupted));
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let Err(Stop::Failed(why)) = Interrupt::default().run(&mut Command::new("no-such-program")) else {
            panic!("it ran");
        };
        assert!(why.starts_with("no-such-program cannot be run"), "{why}");
    }
}
