//! PostgreSQL, Kafka, two web services and two consumers, killed at random moments: the invariant of the example.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use xtask::servers::{Postgres, free_port, shared_kafka};

use super::*;

const KILLS: u64 = 20;
/// In each round between two kills: 500 in all.
const ORDERS: u64 = 25;
const CLIENTS: u64 = 4;
const ACCOUNTS: u64 = 7;
/// So many that each partition has some.
const LAST: u64 = 60;
const SEED: u64 = 0x1d3a_77e5;
/// Rebalances after kills take ten seconds each.
const LIMIT: Duration = Duration::from_secs(120);

/// A command that is started again whenever it has ended.
struct Supervised {
    child: Arc<Mutex<Option<Child>>>,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Supervised {
    fn start(folder: &Path, name: &str, arguments: Vec<String>) -> Self {
        let (child, stop) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let log = folder.join(name);
        let (its, stopped, to) = (child.clone(), stop.clone(), log.clone());
        let supervisor = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut child = lock(&its);
                let has_ended =
                    child.as_mut().is_none_or(|child: &mut Child| child.try_wait().unwrap().is_some());
                if has_ended {
                    *child = Some(spawn(&arguments, &to));
                }
                drop(child);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { child, stop, supervisor: Some(supervisor), log }
    }

    fn kill(&self) {
        if let Some(child) = &mut *lock(&self.child) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// By SIGTERM, for good.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.supervisor.take().unwrap().join().unwrap();
        let mut child = lock(&self.child).take().unwrap();
        assert!(
            Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success()
        );
        assert!(end_of(&mut child).success(), "{}", self.last_words());
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("{}:\n{}\n", self.log.display(), lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
        if let Some(mut child) = lock(&self.child).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(arguments: &[String], log: &Path) -> Child {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let log: File = OpenOptions::new().create(true).append(true).open(log).unwrap();
    checkout(&arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The account and the total of an order.
fn order(number: u64) -> (String, i64) {
    let mut random = Random(SEED ^ number);
    let total = 1 + i64::try_from(random.below(10_000)).unwrap();
    (format!("a{}@example.com", random.below(ACCOUNTS)), total)
}

/// Sends an order, to one web service and the other, until it is answered by 201; how often that was.
fn place(addresses: &[String; 2], first: usize, number: u64) -> u64 {
    let (email, total) = order(number);
    let body = format!(r#"{{"email":"{email}","total":{total}}}"#);
    let mut sent = 0;
    let mut turn = first;
    wait_for("an order is taken", || {
        sent += 1;
        turn += 1;
        match post(&addresses[turn % 2], &format!("{number}"), &body, "") {
            Some((201, ..)) => true,
            // Nobody there, cut off, or no database.
            None | Some((503, ..)) => false,
            Some((status, _, body)) => panic!("{status} {body}"),
        }
    });
    sent
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn balances_are_the_sum_of_all_orders_once_whatever_dies() {
    let postgres = Postgres::start().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let topic = format!("checkout-chaos-{}-{now}", std::process::id());
    let folder = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
    let arguments = |command: &[&str]| -> Vec<String> {
        let broker = format!("kafka://{}?session.timeout.ms=6000", shared_kafka());
        let mut all: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let more = ["--queue", &topic, "--database", &postgres.url(), "--broker", &broker];
        all.extend(more.map(str::to_owned));
        all
    };
    let mut members = [
        Supervised::start(folder.path(), "serve-1", arguments(&["serve", "--listen", &addresses[0]])),
        Supervised::start(folder.path(), "serve-2", arguments(&["serve", "--listen", &addresses[1]])),
        Supervised::start(folder.path(), "balances-1", arguments(&["balances"])),
        Supervised::start(folder.path(), "balances-2", arguments(&["balances"])),
    ];
    let began = Instant::now();

    // The first order is taken when all tables are there.
    place(&addresses, 0, 0);
    let (next, released, repeated) = (AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0));
    let total = KILLS * ORDERS;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= total {
                        return;
                    }
                    wait_for("the next round", || released.load(Ordering::SeqCst) > number);
                    let sent = std::thread::scope(|scope| {
                        // Some are asked for at both at the same time.
                        let twice = number.is_multiple_of(5);
                        let other = twice.then(|| scope.spawn(|| place(&addresses, 1, number)));
                        place(&addresses, 0, number) + other.map_or(1, |other| other.join().unwrap())
                    });
                    repeated.fetch_add(sent - 2, Ordering::SeqCst);
                }
            });
        }
        let mut random = Random(SEED);
        for kill in 1..=KILLS {
            released.store(kill * ORDERS, Ordering::SeqCst);
            let victim = usize::try_from(random.below(4)).unwrap();
            // The web services have nothing to do once a round is answered; events are on their way for longer.
            let longest = if victim < 2 { 60 } else { 1_000 };
            wait_for("the round begins", || next.load(Ordering::SeqCst) > (kill - 1) * ORDERS + CLIENTS);
            std::thread::sleep(Duration::from_millis(random.below(longest)));
            members[victim].kill();
            if kill == KILLS / 2 {
                postgres.kill();
                std::thread::sleep(Duration::from_millis(random.below(1_000)));
                postgres.start_again().unwrap();
            }
        }
    });

    let expected = expected(0..total);
    let sum: i64 = expected.values().sum();
    let booked =
        || postgres.sql("SELECT coalesce(sum(balance), 0) FROM accounts").unwrap().parse::<i64>().unwrap();
    while booked() < sum {
        assert!(began.elapsed() < LIMIT, "{} of {sum} after {LIMIT:?}", booked());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Whatever is still on its way comes before these; then there is nothing on its way.
    for number in total..total + LAST {
        place(&addresses, 0, number);
    }
    let expected = self::expected(0..total + LAST);
    let sum: i64 = expected.values().sum();
    while booked() < sum {
        assert!(began.elapsed() < LIMIT, "{} of {sum} after {LIMIT:?}", booked());
        std::thread::sleep(Duration::from_millis(100));
    }
    members.iter_mut().for_each(Supervised::end);

    let balances = postgres.sql("SELECT email, balance FROM accounts").unwrap();
    let balances = balances.lines().map(|line| line.split_once('|').unwrap());
    let balances: BTreeMap<_, i64> =
        balances.map(|(email, balance)| (email.to_owned(), balance.parse().unwrap())).collect();
    assert_eq!(balances, expected);
    let orders = postgres.sql("SELECT count(*), count(DISTINCT order_id), sum(total) FROM orders").unwrap();
    assert_eq!(orders, format!("{0}|{0}|{sum}", total + LAST));
    assert_eq!(postgres.sql("SELECT count(*) FROM consumer_outbox").unwrap(), "0");
    // It is no test of anything where nothing was cut off.
    let repeated = repeated.load(Ordering::SeqCst);
    assert!(repeated > 0);
    eprintln!("{repeated} requests were sent again, {:.0} s", began.elapsed().as_secs_f64());
}

fn expected(numbers: std::ops::Range<u64>) -> BTreeMap<String, i64> {
    let mut balances = BTreeMap::new();
    for (email, total) in numbers.map(order) {
        *balances.entry(email).or_default() += total;
    }
    balances
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn processes_that_start_at_once_create_the_tables_together() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    for _ in 0..5 {
        postgres.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                // It says its address, or this panics.
                scope.spawn(|| {
                    Service::with(&["--database", &url, "--database-timeout", "30s", "--no-relay"])
                });
            }
        });
    }
}
