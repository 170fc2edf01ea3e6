//! One PostgreSQL server.

mod builder;

pub use self::builder::PostgresBuilder;

use super::{
    Certificates, ServerError,
    process::{self, Slot, wait_until},
    scratch::Scratch,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the processes of a killed server may take to go.
const GONE_TIMEOUT: Duration = Duration::from_secs(20);
/// Where Debian keeps each version's programs, which are not in `PATH`.
const VERSIONS: &str = "/usr/lib/postgresql";

/// A PostgreSQL server of one's own on 127.0.0.1. Ended at once, and its folder removed, on drop.
///
/// What is committed is on disk and survives [`Postgres::stop`] and [`Postgres::kill`]. The one user there is from the
/// start, `postgres`, may do everything, without a password unless [`PostgresBuilder::password`] asks for one. PostgreSQL
/// refuses to run as root; for root it runs as the system's user `postgres`.
#[derive(Debug)]
pub struct Postgres {
    process: Slot,
    cluster: Cluster,
    certificates: Option<Certificates>,
    _scratch: Scratch,
}

/// Where a server has its programs and data, and how to reach it.
struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    options: Vec<(String, String)>,
    port: u16,
    password: Option<String>,
    is_root: bool,
}

/// Leaves out the password, and the values of options.
impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("data", &self.data).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Starts a server with the defaults: no password, no TLS.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub fn start() -> Result<Self, ServerError> {
        Self::builder().start()
    }

    /// Options first, then [`PostgresBuilder::start`].
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// The URL for clients, with the password if there is one: `postgres://postgres@127.0.0.1:15432/postgres`. That of a
    /// server with TLS says that its certificate is to be checked, and by which authority.
    pub fn url(&self) -> String {
        let password = self.cluster.password.as_ref().map(|password| format!(":{password}"));
        let tls = self
            .certificates
            .as_ref()
            .map(|files| format!("?sslmode=verify-full&sslrootcert={}", files.authority().display()));
        let (password, tls) = (password.unwrap_or_default(), tls.unwrap_or_default());
        format!("postgres://postgres{password}@127.0.0.1:{}/postgres{tls}", self.port())
    }

    /// The port it listens on; the same after every [`Postgres::start_again`].
    pub fn port(&self) -> u16 {
        self.cluster.port
    }

    /// The certificates of a server started with [`PostgresBuilder::tls`]; they go away with it.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Whether it has been started and has not ended since, by itself or otherwise.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Stops it: connections are closed with a reason. Waits for its end, 20 s at most.
    pub fn stop(&self) {
        // By SIGTERM it would wait until all clients have gone by themselves.
        self.process.stop_by("INT");
    }

    /// Kills it, and the processes that serve its connections, by SIGKILL; waits until all are gone.
    pub fn kill(&self) {
        // It makes no more processes while these are looked up.
        self.process.pause();
        let children = self.process.pid().map(children_of).unwrap_or_default();
        self.process.kill();
        // In sessions of their own, and each ends by itself only when it next waits for something.
        let pids: Vec<String> = children.iter().map(u32::to_string).collect();
        let _ = Command::new("sh").args(["-c", &format!("kill -s KILL {} 2>&-", pids.join(" "))]).output();
        wait_until(GONE_TIMEOUT, || children.iter().all(|pid| has_ended(*pid)).then_some(()));
    }

    /// Lets it hang: connections that are made are not served, until [`Postgres::resume`]. Those that there are go on.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Goes on after [`Postgres::pause`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Starts it again after [`Postgres::stop`] or [`Postgres::kill`], with the same port and data.
    ///
    /// # Errors
    /// When it is running, or is not ready within 60 s.
    pub fn start_again(&self) -> Result<(), ServerError> {
        let command = self.cluster.command();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let file = self.cluster.data.join("postmaster.pid");
        self.process.start(&command, START_TIMEOUT, |pid| {
            // Its pid as well as its word: the file of one that was killed stays.
            let told = fs::read_to_string(&file).unwrap_or_default();
            let mut lines = told.lines().map(str::trim);
            lines.next() == Some(&pid.to_string()) && lines.next_back() == Some("ready")
        })
    }

    /// Runs SQL by `psql` and gives its answer as text: a line for each row, `|` between columns.
    ///
    /// # Errors
    /// When the server cannot be reached or answers with an error.
    pub fn sql(&self, statements: &str) -> Result<String, ServerError> {
        let mut psql = Command::new(self.cluster.programs.join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", statements]);
        let answer = process::output(&mut psql)?;
        Ok(answer.strip_suffix('\n').unwrap_or(&answer).to_owned())
    }
}

impl Drop for Postgres {
    /// Its data goes away with it. Killed outright, it would leave shared memory behind.
    fn drop(&mut self) {
        self.process.stop_by("QUIT");
    }
}

impl Cluster {
    /// The server, as one process.
    fn command(&self) -> Vec<String> {
        let mut words = vec![self.program("postgres"), "-D".to_owned(), self.data.display().to_string()];
        for (name, value) in &self.options {
            words.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        self.as_server(words)
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).display().to_string()
    }

    /// The command by which the user of the server runs `words`. It becomes that program, where `runuser` would stay as
    /// its parent and keep signals from it.
    fn as_server(&self, words: Vec<String>) -> Vec<String> {
        let mut command = Vec::new();
        if self.is_root {
            let setpriv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"];
            command.extend(setpriv.map(str::to_owned));
            // That forgot the wish for the parent's death.
            command.extend(["setpriv", "--pdeathsig=KILL", "--"].map(str::to_owned));
        }
        command.extend(words);
        command
    }
}

/// The folder with the programs of the newest version that is installed.
fn programs() -> Result<PathBuf, ServerError> {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let numbered = versions.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let folder = |version: u32| Path::new(VERSIONS).join(version.to_string()).join("bin");
    let newest = numbered.filter(|version| folder(*version).join("postgres").is_file()).max();
    newest.map(folder).ok_or_else(|| {
        let missing = io::Error::new(io::ErrorKind::NotFound, "not installed");
        ServerError::io("postgres could not be started", missing)
    })
}

/// State and parent of a process, by what the kernel tells.
fn status_of(pid: u32) -> Option<(char, u32)> {
    let told = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have spaces and brackets.
    let mut fields = told.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| status_of(*pid).is_some_and(|(_, its)| its == parent)).collect()
}

fn has_ended(pid: u32) -> bool {
    status_of(pid).is_none_or(|(state, _)| state == 'Z')
}
