//! `cargo xtask prove`: breaks each promise in a copy of the workspace, and expects its test to fail.

use crate::{
    cargo,
    interrupt::Interrupt,
    promises::{self, Broken},
    services::Services,
    stop::Stop,
};
use clap::Args;
use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use xtask::servers::{KAFKA_VARIABLE, POSTGRES_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE};

/// A test that does not end has failed, too.
const LONGEST: Duration = Duration::from_secs(120);

/// Which promises to break; all of them by default.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only promises with this in their name (may be repeated)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Leave out what needs a server
    #[arg(long)]
    without_servers: bool,
}

enum Verdict {
    Red,
    /// With the reason why it proves nothing.
    Green(String),
}

pub(crate) fn run(selection: &Selection, interrupt: &Interrupt) -> Result<(), Stop> {
    let copy = Workspace::copy()?;
    let mut variants = promises::broken(&copy.root)?;
    let is_chosen =
        |id: &str| selection.only.is_empty() || selection.only.iter().any(|only| id.contains(only));
    variants.retain(|variant| {
        is_chosen(&variant.promise) && !(selection.without_servers && variant.needs_servers)
    });
    // What is built together comes together.
    variants.sort_by_key(|variant| (variant.package.clone(), variant.target.clone(), variant.file.clone()));
    let needs_servers = variants.iter().any(|variant| variant.needs_servers);
    let services = if needs_servers { Some(Services::start(interrupt)?) } else { None };
    // First all of them as they are: so each file is built once, and not again after each variant.
    let mut whole = Vec::new();
    for variant in &variants {
        interrupt.check()?;
        whole.push(copy.test(variant, services.as_ref())?);
    }
    let mut failed = 0;
    for (variant, whole) in variants.iter().zip(whole) {
        interrupt.check()?;
        let begin = Instant::now();
        let verdict = match whole {
            Ok(()) => copy.prove(variant, services.as_ref())?,
            Err(why) => Verdict::Green(format!("it fails without being broken: {why}")),
        };
        let took = begin.elapsed().as_secs_f64();
        match verdict {
            Verdict::Red => println!("{:<12} red    {took:>5.1} s  {}", variant.promise, variant.test),
            Verdict::Green(why) => {
                failed += 1;
                println!("{:<12} GREEN  {took:>5.1} s  {}: {why}", variant.promise, variant.test);
            }
        }
    }
    println!("{} broken variants, {} seen red", variants.len(), variants.len() - failed);
    if failed == 0 { Ok(()) } else { Err(Stop::failed(format!("{failed} promises are not proved"))) }
}

/// A copy of the workspace, in which files may be broken.
struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    fn copy() -> Result<Self, Stop> {
        let failed =
            |what: &Path, error: std::io::Error| Stop::failed(format!("{}: {error}", what.display()));
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let place =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| from.join("target"), PathBuf::from).join("prove");
        let (root, target) = (place.join("tree"), place.join("target"));
        let listed = Command::new("git").current_dir(&from).args(["ls-files", "-z"]).output();
        let listed = listed.map_err(|error| failed(&from, error))?;
        let files = String::from_utf8_lossy(&listed.stdout).into_owned();
        for file in files.split('\0').filter(|file| !file.is_empty()) {
            let (from, to) = (from.join(file), root.join(file));
            let Ok(content) = fs::read(&from) else { continue };
            // What has not changed keeps its time, and is not built again.
            if fs::read(&to).is_ok_and(|there| there == content) {
                continue;
            }
            let folder = to.parent().unwrap_or(&root);
            fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
            fs::write(&to, content).map_err(|error| failed(&to, error))?;
        }
        Ok(Self { root, target })
    }

    /// The test has to fail when the promise is broken.
    fn prove(&self, variant: &Broken, services: Option<&Services>) -> Result<Verdict, Stop> {
        let file = self.root.join(&variant.file);
        let failed = |error: std::io::Error| Stop::failed(format!("{}: {error}", file.display()));
        let whole = fs::read_to_string(&file).map_err(failed)?;
        fs::write(&file, whole.replacen(&variant.line, &variant.with, 1)).map_err(failed)?;
        let tested = self.test(variant, services);
        fs::write(&file, whole).map_err(failed)?;
        Ok(match tested? {
            Ok(()) => Verdict::Green("it passes all the same".to_owned()),
            Err(why) if why == NOT_BUILT => Verdict::Green(why),
            Err(_) => Verdict::Red,
        })
    }

    /// Why the test failed, if it did.
    fn test(&self, variant: &Broken, services: Option<&Services>) -> Result<Result<(), String>, Stop> {
        let Some(program) = self.build(variant)? else { return Ok(Err(NOT_BUILT.to_owned())) };
        let mut command = Command::new(program);
        command.current_dir(self.root.join(&variant.package)).args(["--include-ignored", &variant.test]);
        if let Some(services) = services {
            command
                .env(KAFKA_VARIABLE, services.kafka.bootstrap())
                .env(RABBITMQ_VARIABLE, services.rabbitmq.url());
            command.env(REDIS_VARIABLE, services.redis.url()).env(POSTGRES_VARIABLE, services.postgres.url());
        }
        let output =
            tempfile::tempfile().map_err(|error| Stop::failed(format!("no temporary file: {error}")))?;
        let said = output.try_clone().map_err(|error| Stop::failed(format!("no temporary file: {error}")))?;
        let child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| Stop::failed(format!("the test cannot be run: {error}")))?;
        let Some(succeeded) = ended(child)? else { return Ok(Err("it does not end".to_owned())) };
        if !succeeded {
            return Ok(Err("it fails".to_owned()));
        }
        use std::io::{Read, Seek};
        let mut said = said;
        let mut text = String::new();
        let _ = said.rewind().and_then(|()| said.read_to_string(&mut text));
        Ok(if text.contains("; 0 failed;") && !text.contains("ok. 0 passed") {
            Ok(())
        } else {
            Err(format!("there is no test {}", variant.test))
        })
    }

    /// The program with the tests; None if it does not compile.
    fn build(&self, variant: &Broken) -> Result<Option<PathBuf>, Stop> {
        let mut build = cargo::cargo();
        build.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        build.args(["test", "--no-run", "--message-format=json", "--package", &variant.package]);
        build.args(["--features", &variant.features]);
        match &variant.target {
            Some(target) => build.args(["--test", target]),
            None => build.arg("--lib"),
        };
        let built = build.stderr(Stdio::null()).output();
        let built = built.map_err(|error| Stop::failed(format!("cargo cannot be run: {error}")))?;
        if !built.status.success() {
            return Ok(None);
        }
        let messages = String::from_utf8_lossy(&built.stdout);
        let mut programs = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| {
                let is_test = message["profile"]["test"].as_bool() == Some(true);
                message["executable"].as_str().filter(|_| is_test).map(PathBuf::from)
            });
        Ok(programs.next_back())
    }
}

const NOT_BUILT: &str = "it does not compile";

/// Whether it succeeded; None if it had to be killed.
fn ended(mut child: Child) -> Result<Option<bool>, Stop> {
    let until = Instant::now() + LONGEST;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(Some(status.success())),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            Err(error) => return Err(Stop::failed(format!("the test cannot be waited for: {error}"))),
        }
    }
}
