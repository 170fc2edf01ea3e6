//! The rules of HTTP, on a database in a file.

use std::future::pending;

use axum::{
    body::{Body, to_bytes},
    http::Method,
};
use consumer::{
    Message,
    memory::MemoryBroker,
    sql::{Relay, RelayReport},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Sqlite, SqlitePool};
use tower::ServiceExt;

use super::*;
use crate::{
    balances,
    database::{self, Place},
};

const QUEUE: &str = "orders.placed";
/// Against hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// One process, as far as the database can tell.
struct Process {
    pool: SqlitePool,
    routes: Router,
}

struct Shop {
    folder: tempfile::TempDir,
    process: Process,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn is_problem(&self, status: u16) {
        assert_eq!(
            (self.status, self.header("content-type")),
            (status, "application/problem+json"),
            "{}",
            self.body
        );
        assert_eq!(self.body["status"], status);
    }
}

impl Process {
    async fn start(folder: &tempfile::TempDir, patience: Duration) -> Self {
        let url = format!("sqlite:{}", folder.path().join("checkout.db").display());
        #[cfg_attr(not(feature = "postgres"), allow(irrefutable_let_patterns))]
        let Place::Sqlite(options) = database::by_url(&url).unwrap() else { panic!("it is SQLite") };
        let pool = database::open::<Sqlite>(options, PATIENCE).await.unwrap();
        let orders = Orders::new(pool.clone(), [QUEUE.to_owned()]);
        Self { pool, routes: routes(Checkout::new(orders, patience)) }
    }

    async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Answer {
        let json = ("content-type", "application/json");
        let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
        self.send(Method::POST, "/orders", &headers, body.to_string()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], String::new()).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.routes.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// What the relay publishes from now on.
    async fn published(&self) -> Vec<Message> {
        let broker = MemoryBroker::new();
        broker.create_topic(QUEUE, 1);
        self.relayed(broker.publisher()).await;
        broker.records(QUEUE)
    }

    async fn relayed(&self, publisher: impl consumer::Publisher) -> RelayReport {
        let relay = Relay::new(self.pool.clone(), publisher).max_attempts(1).until_empty();
        tokio::time::timeout(PATIENCE, relay.run(pending())).await.expect("it is emptied").unwrap()
    }

    async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }
}

impl Shop {
    async fn open() -> Self {
        Self::with(PATIENCE).await
    }

    /// The database may take so long.
    async fn with(patience: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(&folder, patience).await;
        Self { folder, process }
    }
}

impl std::ops::Deref for Shop {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

fn order() -> Value {
    json!({"email": "ann@example.com", "total": 1999})
}

#[tokio::test]
async fn an_order_is_placed_and_its_event_published() {
    let shop = Shop::open().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers =
        [("idempotency-key", "17"), ("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let created = shop.post(&headers, &order()).await;
    assert_eq!((created.status, created.header("location")), (201, "/orders/o-17"));
    let expected = json!({"order_id": "o-17", "email": "ann@example.com", "total": 1999});
    assert_eq!(created.body, expected);
    let shown = shop.get("/orders/o-17").await;
    assert_eq!((shown.status, shown.body), (200, expected));

    let [event] = &shop.published().await[..] else { panic!("one event") };
    assert_eq!(event.payload(), &br#"{"order_id":"o-17","email":"ann@example.com","total":1999}"#[..]);
    assert_eq!(event.id().unwrap(), "placed-o-17");
    assert_eq!(event.key().unwrap(), "o-17");
    let header = |name| event.headers().get_str(name);
    assert_eq!(header("traceparent"), Some(parent));
    assert_eq!(header("tracestate"), Some("a=1,b=2"));
    assert_eq!(header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told() {
    let shop = Shop::open().await;
    let json = ("content-type", "application/json");
    let send = |headers: Vec<(&'static str, &'static str)>, body: String| {
        let shop = &shop;
        async move { shop.send(Method::POST, "/orders", &headers, body).await }
    };
    send(vec![json], "{".into()).await.is_problem(400);
    send(vec![], order().to_string()).await.is_problem(415);
    send(vec![json], format!("\"{}\"", "x".repeat(LONGEST_BODY))).await.is_problem(413);
    for key in ["", "a b", "\"", "a/b"] {
        send(vec![json, ("idempotency-key", key)], order().to_string()).await.is_problem(400);
    }
    let invalid = send(vec![json], r#"{"email":"ann"}"#.into()).await;
    invalid.is_problem(422);
    let expected = json!([
        {"field": "email", "reason": "is no mail address"}, {"field": "total", "reason": "is required"}
    ]);
    assert_eq!(invalid.body["errors"], expected);
    shop.get("/orders/o-17").await.is_problem(404);
    shop.get("/accounts/ann@example.com").await.is_problem(404);
    assert!(shop.published().await.is_empty());
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_and_no_second_event() {
    let shop = Shop::open().await;
    let first = shop.post(&[("idempotency-key", "17")], &order()).await;
    assert_eq!(shop.published().await.len(), 1);
    // The quotes are those of the header's syntax.
    let again = shop.post(&[("idempotency-key", "\"17\"")], &order()).await;
    // After a restart too.
    let later = Process::start(&shop.folder, PATIENCE).await;
    for again in [again, later.post(&[("idempotency-key", "17")], &order()).await] {
        assert_eq!((again.status, &again.body), (201, &first.body));
        assert_eq!(again.header("location"), first.header("location"));
    }
    assert!(shop.published().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_request_at_two_processes_at_once_is_one_order() {
    let shop = Shop::open().await;
    let other = Process::start(&shop.folder, PATIENCE).await;
    for key in ["1", "2", "3", "4", "5"] {
        let headers = [("idempotency-key", key)];
        let order = order();
        let post = |process: &Process| {
            let routes = process.routes.clone();
            let process = Process { pool: process.pool.clone(), routes };
            let order = order.clone();
            tokio::spawn(async move { process.post(&headers, &order).await.status })
        };
        let posts: Vec<_> = [&shop.process, &other, &shop.process, &other].map(post).into();
        for status in posts {
            assert_eq!(status.await.unwrap(), 201);
        }
    }
    assert_eq!(shop.published().await.len(), 5);
}

#[tokio::test]
async fn a_key_and_an_id_stand_for_one_order() {
    let shop = Shop::open().await;
    let mut mine = order();
    mine["order_id"] = json!("mine");
    shop.post(&[("idempotency-key", "17")], &order()).await;
    shop.post(&[], &mine).await;
    let other = json!({"email": "eve@example.com", "total": 1999});
    shop.post(&[("idempotency-key", "17")], &other).await.is_problem(422);
    shop.post(&[("idempotency-key", "17")], &mine).await.is_problem(422);
    // A key that came with a repetition stands for that order too.
    assert_eq!(shop.post(&[("idempotency-key", "18")], &mine).await.status, 201);
    shop.post(&[("idempotency-key", "18")], &order()).await.is_problem(422);
    mine["total"] = json!(1);
    shop.post(&[], &mine).await.is_problem(409);
    // One that came with a conflict stands for nothing.
    shop.post(&[("idempotency-key", "19")], &mine).await.is_problem(409);
    assert_eq!(shop.post(&[("idempotency-key", "19")], &order()).await.status, 201);
    assert_eq!(shop.published().await.len(), 3);
}

#[tokio::test]
async fn without_the_database_nothing_is_placed_and_the_retry_completes_it() {
    let shop = Shop::with(Duration::from_millis(200)).await;
    for headers in [&[("idempotency-key", "17")][..], &[]] {
        let writer = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let away = shop.post(headers, &order()).await;
        away.is_problem(503);
        assert_eq!(away.header("retry-after"), "5");
        // By which a client without a key can try again.
        let mut again = order();
        again["order_id"] = away.body["order_id"].clone();
        assert!(again["order_id"].is_string(), "{}", away.body);
        writer.rollback().await.unwrap();
        let placed = async {
            // What was begun may still have the lock.
            while shop.post(headers, &again).await.status == 503 {}
            shop.post(headers, &again).await
        };
        let placed = tokio::time::timeout(PATIENCE, placed).await.expect("the database is back");
        assert_eq!((placed.status, &placed.body), (201, &again), "{}", placed.body);
        assert_eq!(shop.published().await.len(), 1);
    }
}

#[tokio::test]
async fn what_trying_again_cannot_repair_is_no_503() {
    let shop = Shop::open().await;
    shop.execute("DROP TABLE orders").await;
    let refused = shop.post(&[("idempotency-key", "17")], &order()).await;
    refused.is_problem(500);
    assert_eq!(refused.header("retry-after"), "");
}

#[tokio::test]
async fn an_order_whose_event_cannot_be_written_is_not_placed() {
    let shop = Shop::open().await;
    shop.execute("ALTER TABLE consumer_outbox RENAME TO away").await;
    shop.post(&[("idempotency-key", "17")], &order()).await.is_problem(500);
    shop.get("/orders/o-17").await.is_problem(404);
    shop.execute("ALTER TABLE away RENAME TO consumer_outbox").await;
    assert_eq!(shop.post(&[("idempotency-key", "17")], &order()).await.status, 201);
    assert_eq!(shop.published().await.len(), 1);
}

#[tokio::test]
async fn a_malformed_trace_context_goes_no_further() {
    let shop = Shop::open().await;
    shop.post(&[("traceparent", "00-1-2-01"), ("tracestate", "a=1")], &order()).await;
    let [event] = &shop.published().await[..] else { panic!("one event") };
    assert!(!event.headers().contains("traceparent") && !event.headers().contains("tracestate"));
}

#[tokio::test]
async fn balances_have_each_event_once() {
    let shop = Shop::open().await;
    let balances = balances::in_process(shop.pool.clone());
    for key in ["1", "2"] {
        shop.post(&[("idempotency-key", key)], &order()).await;
    }
    assert_eq!(shop.relayed(balances.clone()).await.published, 2);
    // As after a crash between the handler's commit and the end of the row.
    shop.execute(
        r#"INSERT INTO consumer_outbox (destination, message_id, message_key, headers, payload) VALUES
           ('orders.placed', 'placed-o-1', x'31', '[]', '{"order_id":"o-1","email":"ann@example.com","total":1999}')"#,
    )
    .await;
    assert_eq!(shop.relayed(balances).await.published, 1);
    let account = shop.get("/accounts/ann@example.com").await;
    assert_eq!((account.status, account.body), (200, json!({"email": "ann@example.com", "balance": 3998})));
}

#[tokio::test]
async fn an_event_that_the_handler_cannot_apply_stays_in_the_outbox() {
    let shop = Shop::open().await;
    let balances = balances::in_process(shop.pool.clone());
    shop.post(&[("idempotency-key", "1")], &order()).await;
    shop.execute("ALTER TABLE accounts RENAME TO away").await;
    assert_eq!(shop.relayed(balances.clone()).await.quarantined, 1);
    shop.execute("ALTER TABLE away RENAME TO accounts").await;
    shop.execute("UPDATE consumer_outbox SET state = 0, attempts = 0").await;
    assert_eq!(shop.relayed(balances).await.published, 1);
    assert_eq!(shop.get("/accounts/ann@example.com").await.body["balance"], 1999);
}
