//! `consumer-admin relay` from PostgreSQL to real brokers, killed again and again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    collections::{BTreeMap, HashSet},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_core::{BoxSource, Consumer, Message, Outgoing, handler::handler};
use consumer_sql::{Outbox, Tables};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use xtask::servers::{Postgres, shared_kafka, shared_postgres, shared_rabbitmq};

const LIMIT: Duration = Duration::from_secs(120);
const KEYS: usize = 20;
const ROWS: usize = 3_000;
const KILLS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn inv08_killed_again_and_again_every_row_is_at_kafka_in_the_order_of_its_key() {
    let url = format!("kafka://{}", shared_kafka());
    let world = World::new(url).await;
    let admin = consumer_kafka::KafkaAdmin::from_url(&world.broker).unwrap();
    admin.ensure_topic(&world.name, 3, &[]).await.unwrap();
    world.killed_again_and_again().await;
    let source = consumer_kafka::KafkaSource::from_url(&world.broker).group(&world.name).topic(&world.name);
    world.all_arrived(Box::new(source.build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn inv08_killed_again_and_again_every_row_is_at_rabbitmq_in_the_order_of_its_key() {
    let world = World::new(shared_rabbitmq()).await;
    let queue = consumer_amqp::Queue::quorum(&*world.name);
    let admin = consumer_amqp::AmqpAdmin::new(&world.broker).unwrap();
    admin.ensure_queue(queue.clone()).await.unwrap();
    world.killed_again_and_again().await;
    let source = consumer_amqp::AmqpSource::builder(&world.broker).queue(queue).build().unwrap();
    world.all_arrived(Box::new(source)).await;
    admin.delete_queue(&world.name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_quarantined_row_goes_out_after_a_requeue_and_what_it_held_behind_it() {
    let world = World::new(shared_rabbitmq()).await;
    world.write(0..2 * KEYS).await;
    let once = world.relay(&["--until-empty", "--max-attempts", "1"]);
    let output = end(once).await;
    assert_eq!(output.status.code(), Some(1), "there is no such queue: {output:?}");
    assert_eq!(world.rows("state = 2 AND due_at IS NULL").await, KEYS as i64);
    assert_eq!(world.rows("state = 1").await, KEYS as i64);
    let queue = consumer_amqp::Queue::quorum(&*world.name);
    let admin = consumer_amqp::AmqpAdmin::new(&world.broker).unwrap();
    admin.ensure_queue(queue.clone()).await.unwrap();
    let requeue = world.admin(&["outbox", "requeue", "--output", "json"]).output().await.unwrap();
    let expected = format!("{{\"requeued\":{KEYS},\"freed\":{KEYS}}}\n");
    assert_eq!(String::from_utf8_lossy(&requeue.stdout), expected, "{requeue:?}");
    let output = end(world.relay(&["--until-empty"])).await;
    assert!(output.status.success(), "{output:?}");
    let source = consumer_amqp::AmqpSource::builder(&world.broker).queue(queue).build().unwrap();
    assert_in_order(read(Box::new(source)).await, 2 * KEYS);
    admin.delete_queue(&world.name).await.unwrap();
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn a_database_is_reached_by_tls_and_with_a_password_that_nobody_sees() {
    let server = Postgres::builder().password("s3cret").tls().start().unwrap();
    let verified = server.url();
    let admin = |url: String| {
        let mut admin = Command::new(env!("CARGO_BIN_EXE_consumer-admin"));
        admin.args(["migrate", "--database", &url]).env_clear().output()
    };
    let output = admin(verified.clone()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    // The system does not know this authority.
    let unknown = verified.split("&sslrootcert").next().unwrap().to_owned();
    let refused = [unknown, verified.replace("s3cret", "s3cret2")];
    for url in refused {
        let output = admin(url).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot be opened") && !said.contains("s3cret"), "{said}");
    }
}

/// An outbox in a schema of its own, for a topic or queue of its own.
struct World {
    broker: String,
    name: String,
    tables: Tables,
    pool: PgPool,
}

impl World {
    async fn new(broker: String) -> Self {
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let name = format!("relay_{}_{}", std::process::id(), at % 1_000_000_000);
        let pool = PgPoolOptions::new().connect(&shared_postgres()).await.unwrap();
        let tables = Tables::new().in_schema(&*name).unwrap();
        let world = Self { broker, name, tables, pool };
        let output = world.admin(&["migrate"]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        world
    }

    fn admin(&self, command: &[&str]) -> Command {
        let mut admin = Command::new(env!("CARGO_BIN_EXE_consumer-admin"));
        admin
            .args(command)
            .args(["--tables-schema", &self.name])
            .env_clear()
            .env("DATABASE_URL", shared_postgres());
        admin.env("BROKER_URL", &self.broker).stdin(Stdio::null()).kill_on_drop(true);
        admin
    }

    fn relay(&self, more: &[&str]) -> Child {
        let mut relay = self.admin(&["relay"]);
        relay.args(["--batch", "50", "--output", "json"]).args(more);
        relay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    async fn write(&self, rows: std::ops::Range<usize>) {
        let outbox = Outbox::in_tables(&self.tables);
        let mut transaction = self.pool.begin().await.unwrap();
        for n in rows {
            let key = format!("key-{}", n % KEYS);
            let message = Message::builder().id(format!("{key}/{n:06}")).key(key).payload(n.to_string());
            outbox.publish(&mut *transaction, &Outgoing::new(&*self.name, message.build())).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }

    async fn rows(&self, of: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {}.consumer_outbox WHERE {of}", self.name);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    async fn until_rows(&self, enough: impl Fn(i64) -> bool) {
        let fewer = async {
            while !enough(self.rows("1 = 1").await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LIMIT, fewer).await.expect("rows go out");
    }

    /// Killed when it has published something of what was written last; ended by SIGTERM when all is gone.
    async fn killed_again_and_again(&self) {
        for nth in 0..KILLS {
            self.write(nth * ROWS / KILLS..(nth + 1) * ROWS / KILLS).await;
            let before = self.rows("1 = 1").await;
            let mut relay = self.relay(&[]);
            self.until_rows(|now| now < before).await;
            relay.kill().await.unwrap();
        }
        assert!(self.rows("1 = 1").await > 0, "it was killed too late to show anything");
        let relay = self.relay(&[]);
        self.until_rows(|now| now == 0).await;
        let terminate =
            Command::new("kill").args(["-TERM", &relay.id().unwrap().to_string()]).status().await.unwrap();
        assert!(terminate.success());
        let output = end(relay).await;
        assert!(output.status.success(), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["published"].as_u64() > Some(0) && report["quarantined"] == 0, "{report}");
    }

    async fn all_arrived(&self, source: BoxSource) {
        assert_in_order(read(source).await, ROWS);
        assert_eq!(self.rows("1 = 1").await, 0);
    }
}

async fn end(child: Child) -> Output {
    timeout(LIMIT, child.wait_with_output()).await.expect("it ends").unwrap()
}

/// The ids in their order.
async fn read(source: BoxSource) -> Vec<String> {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let seen = ids.clone();
    let note = move |message: Message| {
        let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
        seen.lock().unwrap().push(id);
        async { Ok::<_, consumer_core::Failure>(()) }
    };
    let consumer = Consumer::new(source, handler(note)).max_in_flight(1);
    timeout(LIMIT, consumer.stop_when_idle(Duration::from_secs(2)).run()).await.unwrap().unwrap();
    std::mem::take(&mut *ids.lock().unwrap())
}

/// As consumers see it who deduplicate: each message where it came first.
fn assert_in_order(mut ids: Vec<String>, total: usize) {
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    assert_eq!(ids.len(), total);
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in ids {
        by_key.entry(id.split('/').next().unwrap().to_owned()).or_default().push(id);
    }
    assert_eq!(by_key.len(), KEYS);
    for (key, ids) in by_key {
        assert!(ids.is_sorted(), "{key}: {ids:?}");
    }
}
