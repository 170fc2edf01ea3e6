//! A process of `orders consume`, seen from outside.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::Fallible;

/// A consumer while it runs; killed on drop.
#[derive(Debug)]
pub(crate) struct Consumer {
    /// Which of all that a run has started.
    pub(crate) number: usize,
    child: Child,
    log: PathBuf,
    ready: bool,
}

/// What the log of one says that takes part: on Kafka, on RabbitMQ.
const READY: [&str; 2] = ["partition assigned", "consuming"];

impl Consumer {
    /// Starts it with a mail log and a log of its own in `folder`.
    pub(crate) fn start(number: usize, orders: &Path, folder: &Path, options: &[String]) -> Fallible<Self> {
        let path = folder.join(format!("consumer-{number}.log"));
        let log = File::create(&path)?;
        // It ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(orders).arg("consume").args(options);
        command.arg("--mail-log").arg(mail_log(folder, number));
        command.env_clear().env("RUST_LOG", "info,lapin::returned_messages=off");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { number, child: command.spawn()?, log: path, ready: false })
    }

    /// Whether it takes part. Until then it gives up when a server does not answer for long, as programs do at their start.
    pub(crate) fn is_ready(&mut self) -> bool {
        if !self.ready {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let mut infos = log.lines().filter(|line| line.contains(" INFO "));
            self.ready = infos.any(|line| READY.iter().any(|ready| line.contains(ready)));
        }
        self.ready
    }

    /// Sends SIGTERM, SIGSTOP, …
    pub(crate) fn signal(&self, name: &str) -> Fallible<()> {
        let kill = format!("kill -s {name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status()?;
        if status.success() { Ok(()) } else { Err(format!("`{kill}` failed").into()) }
    }

    /// SIGKILL, without waiting for the end.
    pub(crate) fn kill(&mut self) -> Fallible<()> {
        Ok(self.child.kill()?)
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Fallible<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// How it ends within `limit`.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Fallible<Option<ExitStatus>> {
        let began = Instant::now();
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || began.elapsed() > limit {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn mail_log(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("mails-{number}.jsonl"))
}
