use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower::{Layer, ServiceExt, layer::layer_fn, service_fn};

use super::*;
use crate::{Failure, Message, RetryLayer, TimeoutLayer, TraceLayer};

const SECOND: Duration = Duration::from_secs(1);

type Log = Arc<Mutex<Vec<&'static str>>>;

/// A layer that notes when it is called.
fn noting<S>(log: &Log, name: &'static str) -> impl Layer<S, Service = Noting<S>> + Clone + use<S> {
    let log = log.clone();
    layer_fn(move |inner| Noting { inner, log: log.clone(), name })
}

struct Noting<S> {
    inner: S,
    log: Log,
    name: &'static str,
}

impl<S: tower::Service<Message>> tower::Service<Message> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> S::Future {
        self.log.lock().unwrap().push(self.name);
        self.inner.call(message)
    }
}

#[tokio::test]
async fn layers_are_stacked_in_order_whatever_order_they_are_named_in() {
    let log = Log::default();
    let stack = Pipeline::new()
        .timeout(noting(&log, "timeout"))
        .catch_panic(noting(&log, "catch-panic"))
        .dedup(noting(&log, "dedup"))
        .concurrency_limit(noting(&log, "concurrency"))
        .inbox(noting(&log, "inbox"))
        .trace(noting(&log, "trace"))
        .retry(noting(&log, "retry"))
        .dead_letter(noting(&log, "dead-letter"))
        .rate_limit(noting(&log, "rate"))
        .metrics(noting(&log, "metrics"))
        .service(service_fn(|_: Message| async { Ok::<_, Failure>(()) }));
    stack.oneshot(Message::new("x")).await.unwrap();
    let order = [
        "trace",
        "metrics",
        "dead-letter",
        "dedup",
        "retry",
        "rate",
        "concurrency",
        "inbox",
        "timeout",
        "catch-panic",
    ];
    assert_eq!(*log.lock().unwrap(), order);
}

#[test]
fn every_order_of_naming_gives_one_type() {
    fn same<T>(_: [T; 6]) {}
    let retry = || RetryLayer::fixed(SECOND);
    let timeout = || TimeoutLayer::new(SECOND);
    let trace = TraceLayer::new;
    same([
        Pipeline::new().retry(retry()).timeout(timeout()).trace(trace()),
        Pipeline::new().retry(retry()).trace(trace()).timeout(timeout()),
        Pipeline::new().timeout(timeout()).retry(retry()).trace(trace()),
        Pipeline::new().timeout(timeout()).trace(trace()).retry(retry()),
        Pipeline::new().trace(trace()).retry(retry()).timeout(timeout()),
        Pipeline::new().trace(trace()).timeout(timeout()).retry(retry()),
    ]);
}

#[test]
fn the_last_naming_of_a_slot_counts() {
    let pipeline = Pipeline::new().concurrency(3).concurrency(5).timeout(TimeoutLayer::new(SECOND));
    let facts = pipeline.timeout(TimeoutLayer::new(2 * SECOND)).facts();
    assert_eq!((facts.concurrency, facts.timeout), (Some(Some(5)), Some(2 * SECOND)));
}

#[tokio::test]
async fn panics_are_caught_unless_turned_off() {
    let panics = service_fn(|_: Message| async {
        assert!(std::hint::black_box(false), "broken");
        Ok::<_, Failure>(())
    });
    let failure = Pipeline::new().service(panics).oneshot(Message::new("x")).await.unwrap_err();
    assert!(failure.is_transient());
    let bare = Pipeline::new().without_catch_panic();
    assert!(bare.explain().missing().iter().any(|gap| gap.starts_with("No catch-panic")));
    let task = tokio::spawn(bare.service(panics).oneshot(Message::new("x")));
    assert!(task.await.unwrap_err().is_panic());
}

fn delayed() -> DelayedRetryFacts {
    let mut facts = Facts::default();
    let broker = crate::memory::MemoryBroker::new();
    crate::DelayedRetryLayer::new(broker.publisher()).explain(&mut facts);
    facts.delayed_retry.unwrap()
}

fn dedup() -> DedupFacts {
    DedupFacts {
        consumer: "order-mails".into(),
        key: "the header `message-id`".into(),
        retention: 86_400 * SECOND,
        lease: 30 * SECOND,
        bypass_on_outage: false,
        process_without_key: false,
        fingerprint: true,
        survives_restart: true,
    }
}

#[test]
#[cfg(all(feature = "rate-limit", feature = "metrics"))]
fn a_full_stack_is_explained() {
    use crate::{
        DeadLetterLayer, DedupLayer,
        memory::{MemoryBroker, MemoryStore},
    };

    let pipeline = Pipeline::new()
        .trace(TraceLayer::new())
        .metrics(crate::MetricsLayer::new("order-mails"))
        .dead_letter(DeadLetterLayer::new(MemoryBroker::new().publisher(), "orders.placed.dead"))
        .dedup(DedupLayer::new(MemoryStore::new(), "order-mails"))
        .retry(RetryLayer::exponential(SECOND))
        .rate_limit(crate::RateLimitLayer::per_second(100))
        .concurrency(32)
        .timeout(TimeoutLayer::new(10 * SECOND));
    let expected = "\
This stack guarantees:
  - At-least-once: a message is acknowledged only after the handler succeeded, or its effect was known to have happened, or the broker confirmed its dead letter.
  - Deduplication for the consumer `order-mails` by the header `message-id`: at-least-once; each key's handler completes once unless a process dies between the side effect and `complete`, or the store is away between the two for longer than what is left of the lease, a handler outlives its lease, an attempt that failed or timed out had its effect all the same, the store loses state, or a duplicate comes after the retention.
  - A completed key is remembered for 1day; a claim holds for 30s and is renewed while its handler runs.
  - A known key with another payload is never acknowledged in silence: it is a conflict.
  - While the store is down nothing is processed; the source waits.
  - A message without a key is not processed: it fails for good.
  - A message that fails for good is set aside in `orders.placed.dead`, with its reason and origin.
  - A transient failure is tried again in this process, up to 3 attempts in all, with waits of at most 3s together.
  - At most 100 calls a second; what comes faster waits and is not dropped.
  - At most 32 calls run at once.
  - A call that takes longer than 10s is dropped and has failed.
  - A panic in the handler is a transient failure of that message alone.
  - Each delivery has a span and is counted by outcome.
It does not guarantee:
  - Order: messages run in any order, unless the consumer is given `ordering(Key)` or `ordering(Partition)`.
  - The dedup store lives in this process: a restart forgets every key, and other processes know none of them.
  - A call that timed out may have had its effect all the same.
  - The rate holds for this process: several processes have it once each.
  - A process that dies in a backoff may forget the attempts since its claim was last renewed.";
    assert_eq!(pipeline.explain().to_string(), expected);
}

#[test]
fn an_empty_stack_names_what_is_missing() {
    let expected = "\
This stack guarantees:
  - At-least-once: a message is acknowledged only after the handler succeeded.
  - A panic in the handler is a transient failure of that message alone.
It does not guarantee:
  - Order: messages run in any order, unless the consumer is given `ordering(Key)` or `ordering(Partition)`.
Missing:
  - No deduplication: a message that is delivered again has its effect again.
  - No dead letters: a message that fails for good is presented again without end and holds its place.
  - No retry: a message is presented again after its first failure, however short its cause.
  - No timeout: a call that never ends holds its message for ever.
  - No concurrency limit: as many calls run at once as messages are in flight.";
    assert_eq!(Pipeline::new().explain().to_string(), expected);
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let with = |retention: Duration| Facts {
        dedup: Some(DedupFacts { retention, ..dedup() }),
        retry: Some(RetryFacts { max_attempts: 5, horizon: Some(30 * SECOND) }),
        timeout: Some(10 * SECOND),
        ..Facts::default()
    };
    let short = |facts: &Facts| {
        Explanation::of(facts).missing().iter().any(|gap| gap.contains("shorter than the longest way back"))
    };
    assert!(short(&with(79 * SECOND)), "waits of 30 s and five calls of 10 s");
    assert!(!short(&with(80 * SECOND)));
    // A minute and an hour at the broker, and a call of 10 s after each.
    let delayed = |retention| Facts {
        delayed_retry: Some(DelayedRetryFacts { delays: vec![60 * SECOND, 3600 * SECOND], ..delayed() }),
        ..with(retention)
    };
    assert!(short(&delayed(3759 * SECOND)) && !short(&delayed(3760 * SECOND)));
    let alone = |retention| Facts { retry: None, timeout: None, ..delayed(retention) };
    assert!(short(&alone(3659 * SECOND)) && !short(&alone(3660 * SECOND)));
    let lease = Explanation::of(&with(20 * SECOND));
    assert!(
        lease.missing().iter().any(|gap| gap == "The retention of 20s is shorter than the lease of 30s.")
    );
}

#[test]
fn what_was_opted_into_is_told() {
    let risky =
        DedupFacts { bypass_on_outage: true, process_without_key: true, fingerprint: false, ..dedup() };
    let explanation = Explanation::of(&Facts { dedup: Some(risky), ..Facts::default() });
    let limits = explanation.limits().join("\n");
    assert!(limits.contains("store is down messages are processed without protection"), "{limits}");
    assert!(limits.contains("without a key are processed without protection"), "{limits}");
    assert!(limits.contains("taken for a duplicate"), "{limits}");
    assert!(!limits.contains("restart"), "{limits}");
    let said = explanation.guarantees().join("\n");
    assert!(!said.contains("conflict") && !said.contains("fails for good") && !said.contains("source waits"));
}

#[test]
fn layers_of_other_crates_are_told_in_their_words() {
    let pipeline = Pipeline::new()
        .concurrency_limit(Foreign::new("Sheds load.", tower::load_shed::LoadShedLayer::new()))
        .trace(tower::util::option_layer(Some(TraceLayer::new())));
    let facts = pipeline.facts();
    assert_eq!(facts.foreign, ["Sheds load."]);
    assert!(facts.trace);
}

#[test]
fn what_becomes_of_the_order_in_a_delayed_retry_is_told() {
    let layer = || {
        crate::DelayedRetryLayer::new(crate::memory::MemoryBroker::new().publisher()).delays([30 * SECOND])
    };
    let told = Pipeline::new().delayed_retry(layer()).explain().to_string();
    assert!(told.contains("later messages of its key pass it"), "{told}");
    assert!(told.contains("A run with any order is refused"), "{told}");
    let dedup = crate::DedupLayer::new(crate::memory::MemoryStore::new(), "mails");
    let parking = dedup.parking().limit(50);
    let told = Pipeline::new().delayed_retry(layer().parking(parking)).dedup(dedup).explain().to_string();
    assert!(told.contains("When 50 of a key wait, further ones are set aside"), "{told}");
    assert!(told.contains("A run with `ordering(Partition)` is refused"), "{told}");
    assert!(!told.contains("is not kept"), "{told}");
    let dedup = crate::DedupLayer::new(crate::memory::MemoryStore::new(), "mails")
        .on_outage(crate::dedup::OnOutage::Bypass);
    let told =
        Pipeline::new().delayed_retry(layer().parking(dedup.parking())).dedup(dedup).explain().to_string();
    assert!(told.contains("the order of keys that wait is not kept"), "{told}");
}

#[test]
fn an_inbox_is_explained_and_needs_no_dedup() {
    let inbox = |retention| InboxFacts {
        consumer: "billing".into(),
        key: "the header `message-id`".into(),
        retention,
        process_without_key: false,
        fingerprint: true,
        batch: None,
    };
    let with = |retention| Facts {
        inbox: Some(inbox(retention)),
        retry: Some(RetryFacts { max_attempts: 5, horizon: Some(30 * SECOND) }),
        timeout: Some(10 * SECOND),
        ..Facts::default()
    };
    let explained = Explanation::of(&with(80 * SECOND));
    let said = explained.guarantees().join("\n");
    assert!(said.contains("or its effect was known to have happened"), "{said}");
    assert!(
        said.contains(
            "effects inside the transaction happen exactly once per (consumer, key) within the retention"
        ) && said.contains("calls to other systems are at-least-once"),
        "{said}"
    );
    let missing = explained.missing().join("\n");
    assert!(!missing.contains("deduplication") && !missing.contains("longest way"), "{missing}");
    let short = Explanation::of(&with(79 * SECOND)).missing().join("\n");
    assert!(
        short.contains("The inbox's retention of 1m 19s is shorter than the longest way back"),
        "{short}"
    );
}

#[test]
fn a_dedup_layer_and_an_inbox_are_explained_together() {
    let dedup = |process_without_key, fingerprint| DedupFacts {
        consumer: "billing".into(),
        key: "the header `message-id`".into(),
        retention: 60 * SECOND,
        lease: 30 * SECOND,
        bypass_on_outage: false,
        process_without_key,
        fingerprint,
        survives_restart: true,
    };
    let inbox = |process_without_key, fingerprint| InboxFacts {
        consumer: "billing".into(),
        key: "the header `message-id`".into(),
        retention: 120 * SECOND,
        process_without_key,
        fingerprint,
        batch: None,
    };
    let told = |dedup, inbox| {
        let facts = Facts { dedup: Some(dedup), inbox: Some(inbox), ..Facts::default() };
        Explanation::of(&facts).to_string()
    };
    // A message without a key: both have to let it through.
    let rejected = told(dedup(true, true), inbox(false, true));
    assert!(rejected.contains("A message without a key is not processed"), "{rejected}");
    assert!(!rejected.contains("Messages without a key are processed"), "{rejected}");
    let processed = told(dedup(true, true), inbox(true, true));
    assert!(processed.contains("Messages without a key are processed without a record"), "{processed}");
    assert!(!processed.contains("is not processed: it fails"), "{processed}");
    // Another payload: the one that remembers longer decides in the end.
    let both = told(dedup(false, true), inbox(false, true));
    assert!(both.contains("it is a conflict") && !both.contains("taken for a duplicate"), "{both}");
    let later = told(dedup(false, true), inbox(false, false));
    assert!(later.contains("After 1m a known key with another payload is taken for a duplicate"), "{later}");
}
