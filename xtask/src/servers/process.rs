//! Child processes that never outlive this one.

use super::ServerError;
use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to stop when it is asked to before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);

/// A place for one server process: empty while it is stopped.
#[derive(Debug)]
pub(super) struct Slot {
    name: &'static str,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Slot {
    pub(super) fn new(name: &'static str, log: PathBuf) -> Self {
        Self { name, log, child: Mutex::new(None) }
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Starts `command` with its output in the log, then waits until `ready` gives true. A server that exits or takes
    /// longer than `timeout` is an error with the end of its log, and is not left running.
    pub(super) fn start(
        &self,
        command: &[&str],
        timeout: Duration,
        mut ready: impl FnMut(u32) -> bool,
    ) -> Result<(), ServerError> {
        let mut child = self.lock();
        if child.is_some() {
            return Err(ServerError::failed(format!("{} is running already", self.name)));
        }
        let mut started = self.spawn(command)?;
        let pid = started.id();
        let outcome = wait_until(timeout, || match started.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            _ => ready(pid).then_some(Ok(())),
        });
        let error = match outcome {
            Some(Ok(())) => {
                *child = Some(started);
                return Ok(());
            }
            Some(Err(status)) => ServerError::failed(format!("{} did not start ({status})", self.name)),
            None => ServerError::timeout(format!("{} was not ready after {timeout:?}", self.name)),
        };
        end(&mut started);
        Err(error.with_log(&self.log))
    }

    fn spawn(&self, command: &[&str]) -> Result<Child, ServerError> {
        let failed = |error| ServerError::io(format!("{} could not be started", command[0]), error);
        let log = File::create(&self.log).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        if !Path::new(command[0]).is_absolute() && which(command[0]).is_none() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "not installed")));
        }
        let mut bound = bound_to_this_process(command);
        // Its own process group: a Ctrl-C in the terminal is for us to act on.
        bound.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        spawn_from_lasting_thread(bound).map_err(failed)
    }

    /// SIGTERM, then SIGKILL if that does not help. Nothing happens when it is not running.
    pub(super) fn stop(&self) {
        self.stop_by("TERM");
    }

    /// As [`Slot::stop`], by the signal that this server understands.
    pub(super) fn stop_by(&self, name: &str) {
        if let Some(mut child) = self.lock().take() {
            signal(&child, "CONT");
            signal(&child, name);
            if wait_until(STOP_TIMEOUT, || child.try_wait().ok().flatten()).is_none() {
                end(&mut child);
            }
        }
    }

    /// SIGKILL. Nothing happens when it is not running.
    pub(super) fn kill(&self) {
        if let Some(mut child) = self.lock().take() {
            end(&mut child);
        }
    }

    /// SIGSTOP: connections stay open and are not answered.
    pub(super) fn pause(&self) {
        if let Some(child) = self.lock().as_ref() {
            signal(child, "STOP");
        }
    }

    /// SIGCONT.
    pub(super) fn resume(&self) {
        if let Some(child) = self.lock().as_ref() {
            signal(child, "CONT");
        }
    }

    /// Its number, unless it is stopped.
    pub(super) fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Child::id)
    }

    /// Whether the process was started and has not exited since.
    pub(super) fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    /// Killed and not asked to stop: its data goes away with it.
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks every 20 ms whether `condition` gives something; `None` after `timeout`.
pub(super) fn wait_until<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if begin.elapsed() >= timeout {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Runs a program to its end and gives its standard output.
pub(super) fn output(command: &mut Command) -> Result<String, ServerError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |status: &str| ServerError::failed(format!("{program} failed ({status})"));
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ServerError::io(format!("{program} could not be started"), error))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(failed(&done.status.to_string()).with_output(&(text + "\n" + &String::from_utf8_lossy(&done.stderr))))
}

/// Where in `PATH` a program is.
pub(super) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn end(child: &mut Child) -> Option<ExitStatus> {
    child.kill().ok()?;
    child.wait().ok()
}

/// Sends a signal through the shell's own `kill`: std cannot send but SIGKILL, and a small system has no other.
fn signal(child: &Child, name: &str) {
    let _ = Command::new("sh").args(["-c", &format!("kill -s {name} {}", child.id())]).status();
}

/// The command, killed by the kernel when its parent dies, where util-linux is there to ask for that.
fn bound_to_this_process(command: &[&str]) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let known = SETPRIV.get_or_init(|| {
        let probe = Command::new("setpriv").args(["--pdeathsig=KILL", "--", "true"]).output();
        probe.is_ok_and(|done| done.status.success())
    });
    let mut bound = Command::new(if *known { "setpriv" } else { command[0] });
    if *known {
        bound.args(["--pdeathsig=KILL", "--", command[0]]);
    }
    bound.args(&command[1..]);
    bound
}

type SpawnRequest = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel's "parent has died" signal is sent when the *thread* that started the child ends, and every test runs in
/// a thread of its own. So one thread that lives as long as the process starts them all.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = mpsc::channel::<SpawnRequest>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        requests
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(dir: &tempfile::TempDir) -> Slot {
        Slot::new("sleeper", dir.path().join("log"))
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let slot = slot(&dir);
        thread::scope(|scope| {
            scope.spawn(|| slot.start(&["sleep", "600"], LONG, |_| true).unwrap());
        });
        // The kernel would have sent its signal when the thread above ended; a later spawn comes after that.
        Command::new("true").status().unwrap();
        assert!(slot.is_running());
        slot.stop();
        assert!(!slot.is_running());
    }

    #[test]
    fn an_exit_is_reported_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let error = slot(&dir).start(&["sh", "-c", "echo no room; exit 3"], LONG, |_| false).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(error.to_string().ends_with("no room"), "{error}");
    }

    #[test]
    fn a_server_never_ready_is_a_timeout_and_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut pid = 0;
        let error = slot(&dir)
            .start(&["sleep", "600"], Duration::ZERO, |started| {
                pid = started;
                false
            })
            .unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_missing_program_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = slot(&dir).start(&["no-such-server"], LONG, |_| true).unwrap_err();
        assert!(error.is_missing(), "{error}");
    }
}
