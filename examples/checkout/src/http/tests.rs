//! The rules of HTTP, against a broker in memory that can be away.

use std::future::{Future, pending};

use axum::{
    body::{Body, to_bytes},
    http::Method,
};
use consumer::memory::{MemoryBroker, PublishFault};
use serde_json::json;
use tower::ServiceExt;

use super::*;

const QUEUE: &str = "orders.placed";
const CONFIRM: Duration = Duration::from_secs(2);

struct Shop {
    broker: MemoryBroker,
    routes: Router,
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

impl Shop {
    fn new() -> Self {
        let broker = MemoryBroker::new();
        broker.create_topic(QUEUE, 1);
        let routes = with(broker.publisher());
        Self { broker, routes }
    }

    async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Answer {
        let json = ("content-type", "application/json");
        let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
        self.send(Method::POST, "/orders", &headers, body.to_string()).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        answer(&self.routes, method, path, headers, body).await
    }

    /// Ids and payloads of what was published.
    fn published(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let records = self.broker.records(QUEUE);
        records.iter().map(|event| (text(event.id().unwrap()), text(event.payload()))).collect()
    }
}

fn with(publisher: impl Publisher) -> Router {
    routes(Checkout::new(DynPublisher::new(publisher), QUEUE, CONFIRM))
}

async fn answer(
    routes: &Router,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = routes.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

fn order() -> Value {
    json!({"email": "ann@example.com", "total": 1999})
}

#[tokio::test]
async fn an_order_is_placed_and_its_event_published() {
    let shop = Shop::new();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers =
        [("idempotency-key", "17"), ("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let created = shop.post(&headers, &order()).await;
    assert_eq!((created.status, created.header("location")), (201, "/orders/o-17"));
    let expected = json!({"order_id": "o-17", "email": "ann@example.com", "total": 1999});
    assert_eq!(created.body, expected);
    let shown = shop.send(Method::GET, "/orders/o-17", &[], String::new()).await;
    assert_eq!((shown.status, shown.body), (200, expected));

    let [event] = &shop.broker.records(QUEUE)[..] else { panic!("one event") };
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
    let shop = Shop::new();
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
    shop.send(Method::GET, "/orders/o-17", &[], String::new()).await.is_problem(404);
    assert!(shop.published().is_empty());
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_and_no_second_event() {
    let shop = Shop::new();
    let first = shop.post(&[("idempotency-key", "17")], &order()).await;
    // The quotes are those of the header's syntax.
    let again = shop.post(&[("idempotency-key", "\"17\"")], &order()).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(shop.published().len(), 1);
}

#[tokio::test]
async fn a_key_and_an_id_stand_for_one_order() {
    let shop = Shop::new();
    let mut mine = order();
    mine["order_id"] = json!("mine");
    shop.post(&[("idempotency-key", "17")], &order()).await;
    shop.post(&[], &mine).await;
    let other = json!({"email": "eve@example.com", "total": 1999});
    shop.post(&[("idempotency-key", "17")], &other).await.is_problem(422);
    shop.post(&[("idempotency-key", "17")], &mine).await.is_problem(422);
    mine["total"] = json!(1);
    shop.post(&[], &mine).await.is_problem(409);
    assert_eq!(shop.published().len(), 2);
}

#[tokio::test]
async fn without_a_broker_nothing_is_placed_and_the_retry_completes_it() {
    for fault in [PublishFault::Unavailable, PublishFault::LostConfirm] {
        let shop = Shop::new();
        shop.broker.fail_next_publishes(1, fault);
        let away = shop.post(&[("idempotency-key", "17")], &order()).await;
        away.is_problem(503);
        assert_eq!((away.header("retry-after"), &away.body["order_id"]), ("5", &json!("o-17")));
        shop.send(Method::GET, "/orders/o-17", &[], String::new()).await.is_problem(404);

        let created = shop.post(&[("idempotency-key", "17")], &order()).await;
        assert_eq!((created.status, created.header("location")), (201, "/orders/o-17"));
        let published = shop.published();
        assert_eq!(published.len(), if fault == PublishFault::LostConfirm { 2 } else { 1 });
        assert!(
            published.iter().all(|event| *event == published[0] && event.0 == "placed-o-17"),
            "{published:?}"
        );
    }
}

#[tokio::test]
async fn a_client_without_a_key_can_retry_by_the_id_it_is_told() {
    let shop = Shop::new();
    shop.broker.fail_next_publishes(1, PublishFault::LostConfirm);
    let away = shop.post(&[], &order()).await;
    away.is_problem(503);
    let mut again = order();
    again["order_id"] = away.body["order_id"].clone();
    assert_eq!(shop.post(&[], &again).await.status, 201);
    let published = shop.published();
    assert_eq!(published[0], published[1]);
}

#[tokio::test]
async fn what_trying_again_cannot_repair_is_no_503() {
    let shop = Shop::new();
    shop.broker.fail_next_publishes(1, PublishFault::Unroutable);
    let refused = shop.post(&[("idempotency-key", "17")], &order()).await;
    refused.is_problem(500);
    assert_eq!(refused.header("retry-after"), "");
}

#[tokio::test]
async fn a_malformed_trace_context_goes_no_further() {
    let shop = Shop::new();
    shop.post(&[("traceparent", "00-1-2-01"), ("tracestate", "a=1")], &order()).await;
    let [event] = &shop.broker.records(QUEUE)[..] else { panic!("one event") };
    assert!(!event.headers().contains("traceparent") && !event.headers().contains("tracestate"));
}

/// A broker that takes messages and never confirms.
#[derive(Debug, Clone)]
struct Silent;

impl Publisher for Silent {
    fn publish(
        &self,
        _: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        pending()
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_confirms_is_waited_for_only_so_long() {
    let routes = with(Silent);
    let headers = [("content-type", "application/json"), ("idempotency-key", "17")];
    let post = || answer(&routes, Method::POST, "/orders", &headers, order().to_string());
    let begin = tokio::time::Instant::now();
    let mut first = Box::pin(post());
    // Meanwhile the same request from elsewhere is told so.
    let second = tokio::select! {
        biased;
        _ = &mut first => panic!("there is no confirm"),
        second = post() => second,
    };
    second.is_problem(409);
    assert_eq!(second.header("retry-after"), "1");
    first.await.is_problem(503);
    assert_eq!(begin.elapsed(), CONFIRM);

    // A client that goes away leaves its order to the next request.
    let gone = tokio::time::timeout(CONFIRM / 2, post()).await;
    assert!(gone.is_err());
    post().await.is_problem(503);
}
