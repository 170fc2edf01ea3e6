//! Relays that die, and databases that go away.
//!
//! The broker of these tests is a table: it outlives the process that publishes, and shows in which order it was written.

use std::{
    collections::HashMap,
    future::Future,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use consumer_core::{Outgoing, PublishError, Publisher};
use consumer_sql::{Relay, Tables};
use sqlx::{AssertSqlSafe, Pool, Postgres, postgres::PgPoolOptions};
use xtask::servers::Postgres as Server;

use crate::{
    LIMIT,
    database::{TestDatabase, on, postgres},
    message, write,
};

const STEP: &str = "TEST_RELAY_STEP";
const URL: &str = "TEST_RELAY_URL";
const SCHEMA: &str = "TEST_RELAY_SCHEMA";
/// When a relay dies that takes five rows of one key at a time, twelve of each key: before or after the broker has the
/// n-th message.
#[derive(Clone, Copy)]
struct Step {
    what: &'static str,
    call: i64,
    is_stored: bool,
    /// How many come again at most.
    again: usize,
}

const STEPS: [Step; 5] = [
    Step { what: "taken", call: 1, is_stored: false, again: 0 },
    Step { what: "published, and the confirm not seen", call: 3, is_stored: true, again: 3 },
    Step { what: "confirmed, and not settled", call: 4, is_stored: false, again: 3 },
    Step { what: "settled, and the next are taken", call: 6, is_stored: false, again: 0 },
    Step { what: "the shard is given up, and another one owned", call: 13, is_stored: false, again: 0 },
];
const KEYS: usize = 3;
const OF_EACH: usize = 12;

/// A broker that is a table, and kills its process at a step.
#[derive(Clone)]
struct Table {
    pool: Pool<Postgres>,
    schema: String,
    step: Option<Step>,
    calls: Arc<AtomicI64>,
}

impl Table {
    async fn connect(url: &str, schema: &str, step: Option<Step>) -> Self {
        let pool = PgPoolOptions::new().max_connections(4).connect(url).await.unwrap();
        Self { pool, schema: schema.to_owned(), step, calls: Arc::default() }
    }

    async fn create(&self) {
        let sql = format!("CREATE TABLE {}.broker (n BIGSERIAL, id TEXT, key TEXT)", self.schema);
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    /// Ids by key, in the order of their arrival.
    async fn arrived(&self) -> HashMap<String, Vec<String>> {
        let sql = format!("SELECT key, id FROM {}.broker ORDER BY n", self.schema);
        let rows: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.pool).await.unwrap();
        let mut by_key: HashMap<String, Vec<String>> = HashMap::new();
        for (key, id) in rows {
            by_key.entry(key).or_default().push(id);
        }
        by_key
    }

    fn reached(&self, call: i64, is_stored: bool) {
        if self.step.is_some_and(|step| (step.call, step.is_stored) == (call, is_stored)) {
            die();
        }
    }
}

fn die() {
    Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status().unwrap();
    loop {
        thread::park();
    }
}

impl Publisher for Table {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let text = |bytes: Option<&bytes::Bytes>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let id = outgoing.headers().get_str("message-id").unwrap().to_owned();
        let key = text(outgoing.message().key());
        let table = self.clone();
        let call = table.calls.fetch_add(1, Ordering::SeqCst) + 1;
        table.reached(call, false);
        async move {
            let sql = format!("INSERT INTO {}.broker (id, key) VALUES ($1, $2)", table.schema);
            let done = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(key).execute(&table.pool).await;
            done.map_err(|error| PublishError::unavailable("the table is away").with_source(error))?;
            table.reached(call, true);
            Ok(())
        }
    }
}

/// The relay in a process of its own, until it dies or nothing is left.
#[test]
#[ignore = "the child of the tests here"]
fn child() {
    let Ok(url) = std::env::var(URL) else { return };
    let schema = std::env::var(SCHEMA).unwrap();
    let step = std::env::var(STEP).ok().map(|step| STEPS[step.parse::<usize>().unwrap()]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let table = Table::connect(&url, &schema, step).await;
        let relay = Relay::new(table.pool.clone(), table).tables(Tables::new().in_schema(schema).unwrap());
        let relay = relay.batch(5).workers(1).poll(Duration::from_millis(20)).until_empty();
        relay.run(std::future::pending()).await.unwrap();
    });
}

fn start(url: &str, schema: &str, step: Option<usize>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "killed::child", "--ignored", "--nocapture"]).env(URL, url).env(SCHEMA, schema);
    if let Some(step) = step {
        command.env(STEP, step.to_string());
    }
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Everything has arrived, each key in its order; what came again did so before its successor. Tells how many did.
fn assert_complete(arrived: HashMap<String, Vec<String>>, of_each: usize) -> usize {
    let mut again = 0;
    for (key, ids) in arrived {
        let expected: Vec<_> = (0..of_each).map(|n| format!("{key}/{n:03}")).collect();
        // A batch that comes again comes from its begin: what counts is what is new.
        let mut seen = Vec::new();
        for id in &ids {
            if !seen.contains(id) {
                seen.push(id.clone());
            }
        }
        assert_eq!(seen, expected, "{key}: {ids:?}");
        again += ids.len() - seen.len();
    }
    again
}

fn numbered(keys: usize, of_each: usize) -> impl Iterator<Item = Outgoing> {
    (0..of_each * keys).map(move |n| {
        let key = format!("key-{}", n % keys);
        message(format!("{key}/{:03}", n / keys), &key)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn inv08_a_relay_that_is_killed_at_any_step_loses_nothing_and_keeps_the_order() {
    let url = xtask::servers::shared_postgres();
    for (number, step) in STEPS.iter().enumerate() {
        let database = postgres().await;
        let schema = database.tables().schema().unwrap().to_owned();
        let table = Table::connect(&url, &schema, None).await;
        table.create().await;
        write(&database, numbered(KEYS, OF_EACH)).await;
        assert_eq!(
            database.count("shard = (SELECT min(shard) FROM OUTBOX)").await,
            12,
            "a shard for each key"
        );
        let died = start(&url, &schema, Some(number)).wait().unwrap();
        assert_eq!(died.signal(), Some(9), "{}", step.what);
        assert!(database.count("1 = 1").await > 0, "{}", step.what);
        assert!(start(&url, &schema, None).wait().unwrap().success());
        let arrived = table.arrived().await;
        assert_eq!(arrived.len(), KEYS);
        let again = assert_complete(arrived, OF_EACH);
        assert_eq!(again, step.again, "{}", step.what);
        assert_eq!(database.count("1 = 1").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_relay_goes_on_by_itself_when_connections_are_cut_and_the_server_is_killed() {
    let server = Server::start().unwrap();
    let (database, broker) = (on(&server.url()).await, crate::broker());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(crate::relay(&database, &broker).run(async { drop(stopped.await) }));
    let (keys, of_each) = (20, 60);
    let mut left = numbered(keys, of_each);
    for round in 0..6 {
        write(&database, left.by_ref().take(keys * of_each / 6)).await;
        if round % 3 == 2 {
            server.kill();
            server.start_again().unwrap();
        } else {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
            server.sql(cut).unwrap();
        }
    }
    let emptied = async {
        while database.count("1 = 1").await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, emptied).await.expect("everything is published");
    drop(stop);
    run.await.unwrap().unwrap();
    let mut by_key: HashMap<String, Vec<String>> = HashMap::new();
    for id in crate::published(&broker, "t") {
        by_key.entry(id.split('/').next().unwrap().to_owned()).or_default().push(id);
    }
    assert_eq!(by_key.len(), keys);
    assert_complete(by_key, of_each);
}
