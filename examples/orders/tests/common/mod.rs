//! Runs the program as a user does: by its command line.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What the program may take in all; it is killed then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// `orders` with these arguments and none of its environment variables.
pub(crate) fn orders<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orders"));
    command.args(arguments).env_clear().env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the program did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Done {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The last line on stdout.
    pub(crate) fn report(&self) -> serde_json::Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("no report ({error}): {self:?}"))
    }

    /// One number of the report.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.report()[name].as_u64().unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// Ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code(), Some(0), "{self:?}");
        self
    }
}

/// The program while it runs; killed on drop.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    output: Option<[JoinHandle<String>; 2]>,
    began: Instant,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, output: Some([read(stdout), read(stderr)]), began: Instant::now() }
    }

    /// Sends SIGTERM, SIGINT, …
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Ends it by a signal, well.
    pub(crate) fn stop_and_wait(self, name: &str) -> Done {
        self.signal(name);
        self.wait().ok()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn wait(mut self) -> Done {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.began.elapsed() > PATIENCE {
                let _ = self.child.kill();
                break self.child.wait().unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        };
        let took = self.began.elapsed();
        let [stdout, stderr] = self.output.take().unwrap().map(|reader| reader.join().unwrap());
        Done { status, stdout, stderr, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs to the end.
pub(crate) fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Done {
    Running::start(&mut orders(arguments)).wait()
}

/// A name that no other test and no other run uses.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nth = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("orders-{name}-{}-{nth}-{}", std::process::id(), now.as_millis())
}

/// Waits for a condition that has to come true.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A line of a mail log.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub(crate) message_id: String,
    pub(crate) order_id: String,
    pub(crate) epoch: u64,
    pub(crate) attempt: u64,
    pub(crate) at: std::time::SystemTime,
}

/// What was mailed so far. A write that goes over the end of a page can be seen half done, so the last line counts once it
/// has its end; every other has to be whole.
pub(crate) fn mails(path: &Path) -> Vec<Mail> {
    let log = fs::read_to_string(path).unwrap_or_default();
    let log = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        let mail: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| mail[name].as_str().unwrap().to_owned();
        Mail {
            message_id: text("message_id"),
            order_id: text("order_id"),
            epoch: mail["epoch"].as_u64().unwrap(),
            attempt: mail["attempt"].as_u64().unwrap(),
            at: consumer::message::wire::parse_time(&text("at")).unwrap(),
        }
    };
    log.lines().map(line).collect()
}

/// A folder for mail logs.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
