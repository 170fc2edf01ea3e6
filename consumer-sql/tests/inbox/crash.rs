//! A process that is killed by SIGKILL at each step of a message, started again with the same messages.

use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use consumer_core::{
    Consumer, Failure, Message, Outcome, Outgoing, Pipeline, Publisher, RetryLayer, dedup::fingerprint,
    memory::MemoryBroker,
};
use consumer_sql::{InboxLayer, Tables, Tx};
use sqlx::{Postgres, Sqlite};
use tower::{ServiceExt, service_fn};

use super::bank::{Bank, Under, book};

const MESSAGES: i64 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing is begun.
    Taken,
    /// The record is written.
    Recorded,
    /// The effect is.
    Done,
    /// Soon after that: before, in and after the commit.
    Committing,
    /// The commit is done; nothing is acked.
    Answered,
}

impl Step {
    const ALL: [Self; 5] = [Self::Taken, Self::Recorded, Self::Done, Self::Committing, Self::Answered];
}

/// Burns through when its step is reached for the nth time.
#[derive(Clone)]
struct Fuse {
    step: Option<Step>,
    left: Arc<AtomicI64>,
}

impl Fuse {
    fn of_process() -> Self {
        let step = Step::ALL.into_iter().find(|step| format!("{step:?}") == variable("STEP"));
        Self { step, left: Arc::new(AtomicI64::new(variable("NTH").parse().unwrap())) }
    }

    fn reached(&self, step: Step) {
        if self.step == Some(step) && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let kill = || {
                let id = std::process::id().to_string();
                Command::new("kill").args(["-KILL", &id]).status().unwrap();
            };
            if step == Step::Committing {
                // However long the start of `kill` takes, it is about as long as a commit.
                thread::spawn(kill);
                return;
            }
            kill();
            loop {
                thread::park();
            }
        }
    }
}

fn variable(name: &str) -> String {
    env::var(format!("INBOX_CRASH_{name}")).unwrap()
}

/// Run by the tests as a process of its own, and nothing by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other tests"]
async fn process() {
    let Ok(kind) = env::var("INBOX_CRASH_KIND") else { return };
    match &*kind {
        "postgres" => {
            let pool = <Postgres as Under>::pool(&variable("HOME"), 4, Duration::from_secs(30));
            let tables = Tables::new().in_schema(variable("HOME")).unwrap();
            consume(InboxLayer::new(pool, "bank").tables(tables)).await;
        }
        _ => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(variable("HOME"));
            let pool = sqlx::pool::PoolOptions::new().max_connections(4).connect_lazy_with(options);
            consume::<Sqlite>(InboxLayer::new(pool, "bank")).await;
        }
    }
}

async fn consume<DB: Under>(layer: InboxLayer<DB>) {
    let fuse = Fuse::of_process();
    let broker = MemoryBroker::new();
    broker.create_topic("payments", 2);
    for n in 0..2 * MESSAGES {
        // Each twice, and one close behind the other.
        let payment = Message::builder().id((n / 2).to_string()).payload((n / 2).to_string()).build();
        broker.publisher().publish(Outgoing::new("payments", payment)).await.unwrap();
    }
    let taken = fuse.clone();
    let layer = layer.batch(variable("BATCH").parse().unwrap()).fingerprint(move |message| {
        taken.reached(Step::Taken);
        Some(fingerprint(message.payload()))
    });
    let inner = fuse.clone();
    let books = service_fn(move |message: Message| {
        let fuse = inner.clone();
        async move {
            fuse.reached(Step::Recorded);
            let amount = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
            book::<DB>(&mut *Tx::<DB>::take(&message)?, amount).await?;
            fuse.reached(Step::Done);
            fuse.reached(Step::Committing);
            Ok::<_, Failure>(())
        }
    });
    let stack = Pipeline::new()
        .retry(RetryLayer::fixed(Duration::from_millis(10)).max_attempts(100))
        .concurrency(16)
        .inbox(layer)
        .service(books);
    let stack = service_fn(move |message: Message| {
        let (stack, fuse) = (stack.clone(), fuse.clone());
        async move {
            let outcome: Result<Outcome, Failure> = stack.oneshot(message).await;
            if outcome.is_ok() {
                fuse.reached(Step::Answered);
            }
            outcome
        }
    });
    let report = Consumer::new(broker.source("bank", ["payments"]).finite(), stack).run().await.unwrap();
    assert_eq!(i64::try_from(report.processed + report.duplicates).unwrap(), 2 * MESSAGES);
}

fn start(kind: &str, home: &str, batch: usize, step: Option<Step>, nth: usize) -> std::process::ExitStatus {
    let folder = tempfile::tempdir().unwrap();
    let output = fs::File::create(folder.path().join("output")).unwrap();
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "crash::process", "--include-ignored", "--nocapture"]);
    child.env("INBOX_CRASH_KIND", kind).env("INBOX_CRASH_HOME", home);
    child.env("INBOX_CRASH_BATCH", batch.to_string()).env("INBOX_CRASH_NTH", nth.to_string());
    child.env("INBOX_CRASH_STEP", step.map(|step| format!("{step:?}")).unwrap_or_default());
    if kind == "postgres" {
        child.env(xtask::servers::POSTGRES_VARIABLE, xtask::servers::shared_postgres());
    }
    child.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
    let status = child.status().unwrap();
    if status.signal().is_none() && !status.success() {
        panic!("{}", fs::read_to_string(folder.path().join("output")).unwrap_or_default());
    }
    status
}

async fn killed_at_each_step<DB: Under>(kind: &str, home: impl Fn(&DB::Home) -> String) {
    for batch in [1, 8] {
        for step in Step::ALL {
            let bank = Bank::<DB>::open().await;
            let home = home(&bank.home);
            for nth in [1, 6, 15] {
                let status = start(kind, &home, batch, Some(step), nth);
                // A second run may have too little left to do, and one that is killed soon may be quicker.
                let must_die = nth == 1 && step != Step::Committing;
                assert!(!must_die || status.signal() == Some(9), "{step:?}: not killed");
                let (sum, records) = (bank.balance().await, bank.records().await);
                assert!(sum <= MESSAGES * (MESSAGES - 1) / 2 && records <= MESSAGES, "{step:?}: {sum}");
            }
            assert!(start(kind, &home, batch, None, 0).success());
            let all = (MESSAGES * (MESSAGES - 1) / 2, MESSAGES);
            assert_eq!((bank.balance().await, bank.records().await), all, "{step:?}, batches of {batch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_killed_at_each_step_everything_is_booked_once() {
    killed_at_each_step::<Sqlite>("sqlite", |home| home.path().join("bank.db").display().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_killed_at_each_step_everything_is_booked_once() {
    killed_at_each_step::<Postgres>("postgres", Clone::clone).await;
}
