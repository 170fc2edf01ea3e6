//! From the outbox to the inbox, while relay and consumer are killed 200 times at random moments: nothing is lost, nothing
//! has its effect twice, and each key keeps its order.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use consumer_amqp::{AmqpAdmin, AmqpPublisher, AmqpSource, Queue};
use consumer_core::{
    Consumer, Failure, Message, Outgoing,
    handler::{Json, MessageId, handler},
    runtime::Ordering as Order,
};
use consumer_sql::{InboxLayer, Outbox, Relay, Tables, Tx, migrate};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Postgres, postgres::PgPoolOptions};
use tower::ServiceBuilder;
use xtask::servers::{shared_postgres, shared_rabbitmq};

const WORK: &str = "TEST_KILL_CYCLES_WORK";
const PLACE: &str = "TEST_KILL_CYCLES_PLACE";
const POSTGRES: &str = "TEST_KILL_CYCLES_POSTGRES";
const RABBITMQ: &str = "TEST_KILL_CYCLES_RABBITMQ";

/// Of relay and consumer together.
const KILLS: u32 = 200;
const KEYS: u32 = 8;
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Serialize, Deserialize)]
struct Step {
    key: u32,
    /// From 0, in each key.
    number: i64,
}

async fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(6).connect(url).await.unwrap()
}

fn queue(place: &str) -> Queue {
    Queue::quorum(place).single_active_consumer()
}

/// Run by the test as processes of their own, and nothing by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other test"]
async fn process() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (place, rabbitmq) = (variable(PLACE), variable(RABBITMQ));
    match &*variable(WORK) {
        "relay" => relay(pool(&variable(POSTGRES)).await, &rabbitmq, &place).await,
        "consume" => consume(pool(&variable(POSTGRES)).await, &rabbitmq, &place).await,
        _ => {}
    }
}

async fn relay(pool: PgPool, rabbitmq: &str, place: &str) {
    let publisher = AmqpPublisher::builder(rabbitmq).build().unwrap();
    let tables = Tables::new().in_schema(place).unwrap();
    let relay =
        Relay::new(pool, publisher).tables(tables).batch(20).workers(2).poll(Duration::from_millis(50));
    relay.run(std::future::pending()).await.unwrap();
}

async fn consume(pool: PgPool, rabbitmq: &str, place: &str) {
    let source = AmqpSource::builder(rabbitmq).queue(queue(place)).prefetch(30).build().unwrap();
    let sql = format!("INSERT INTO {place}.effects (id, key, number) VALUES ($1, $2, $3)");
    let effect = move |MessageId(id): MessageId, Json(step): Json<Step>, mut tx: Tx<Postgres>| {
        let sql = sql.clone();
        async move {
            let id = String::from_utf8(id.to_vec()).unwrap();
            let key = i64::from(step.key);
            sqlx::query(AssertSqlSafe(sql)).bind(id).bind(key).bind(step.number).execute(&mut *tx).await?;
            Ok::<_, Failure>(())
        }
    };
    let stack = ServiceBuilder::new()
        .layer(InboxLayer::new(pool, "effects").tables(Tables::new().in_schema(place).unwrap()))
        .service(handler(effect));
    Consumer::new(source, stack).ordering(Order::Key).max_in_flight(30).run().await.unwrap();
}

fn start(work: &str, place: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process", "--ignored", "--nocapture"]);
    command
        .env(WORK, work)
        .env(PLACE, place)
        .env(POSTGRES, shared_postgres())
        .env(RABBITMQ, shared_rabbitmq());
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Kills it after a while, and starts it again, so many times; at the end it runs.
fn kill_again_and_again(work: &str, place: &str, mut random: u64, kills: u32) -> Child {
    let mut child = start(work, place);
    for _ in 0..kills {
        // Reproducible (Numerical Recipes' constants), if anything about a kill is.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
        thread::sleep(Duration::from_millis(40 + random % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        child = start(work, place);
    }
    child
}

/// Writes steps of all keys, some transactions with several and some rolled back, until it is told to stop; how many of each
/// key.
async fn write(pool: &PgPool, place: &str, stop: &AtomicBool) -> i64 {
    let outbox = Outbox::in_tables(&Tables::new().in_schema(place).unwrap());
    let message = |key: u32, number: i64| {
        let id = format!("{key}/{number}");
        let payload = serde_json::to_vec(&Step { key, number }).unwrap();
        Outgoing::new(place, Message::builder().payload(payload).id(id).key(key.to_string()).build())
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        for key in 0..KEYS {
            let mut undone = pool.begin().await.unwrap();
            outbox.publish(&mut *undone, &message(key, -1)).await.unwrap();
            undone.rollback().await.unwrap();
            let mut transaction = pool.begin().await.unwrap();
            for number in number..number + 3 {
                outbox.publish(&mut *transaction, &message(key, number)).await.unwrap();
            }
            transaction.commit().await.unwrap();
        }
        number += 3;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs servers: cargo xtask test"]
async fn inv08_200_kills_of_relay_and_consumer_lose_nothing_and_double_no_effect() {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let place = format!("kills_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let pool = pool(&shared_postgres()).await;
    migrate::<Postgres>(&mut *pool.acquire().await.unwrap(), &Tables::new().in_schema(&*place).unwrap())
        .await
        .unwrap();
    let effects = format!("CREATE TABLE {place}.effects (n BIGSERIAL, id TEXT, key BIGINT, number BIGINT)");
    sqlx::query(AssertSqlSafe(effects)).execute(&pool).await.unwrap();
    AmqpAdmin::new(shared_rabbitmq()).unwrap().ensure_queue(queue(&place)).await.unwrap();

    let stop = AtomicBool::new(false);
    let killed = async {
        let kill = |work: &'static str, seed| {
            let place = place.clone();
            tokio::task::spawn_blocking(move || kill_again_and_again(work, &place, seed, KILLS / 2))
        };
        let (relay, consumer) = tokio::join!(kill("relay", 17), kill("consume", 42));
        stop.store(true, Ordering::Relaxed);
        (relay.unwrap(), consumer.unwrap())
    };
    let (of_each, (mut relay, mut consumer)) = tokio::join!(write(&pool, &place, &stop), killed);
    let written = of_each * i64::from(KEYS);

    let count = format!("SELECT count(*), count(DISTINCT id) FROM {place}.effects");
    let waiting = format!("SELECT count(*) FROM {place}.consumer_outbox");
    let begin = Instant::now();
    loop {
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(waiting.clone())).fetch_one(&pool).await.unwrap();
        let (all, _): (i64, i64) =
            sqlx::query_as(AssertSqlSafe(count.clone())).fetch_one(&pool).await.unwrap();
        if left == 0 && all >= written {
            break;
        }
        assert!(begin.elapsed() < LIMIT, "{left} rows wait, {all} effects of {written}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for child in [&mut relay, &mut consumer] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (all, different): (i64, i64) = sqlx::query_as(AssertSqlSafe(count)).fetch_one(&pool).await.unwrap();
    assert_eq!((all, different), (written, written), "effects, and different ones");
    let out_of_order = format!(
        "SELECT key, number, before FROM (SELECT key, number, lag(number, 1, -1::bigint) OVER (PARTITION BY key ORDER BY n) AS before \
         FROM {place}.effects) it WHERE number <> before + 1"
    );
    let wrong: Vec<(i64, i64, i64)> =
        sqlx::query_as(AssertSqlSafe(out_of_order)).fetch_all(&pool).await.unwrap();
    println!("{written} messages, {KILLS} kills");
    assert!(wrong.is_empty(), "{written} written; key, number, the one before: {wrong:?}");
}
