use std::{
    collections::BTreeMap,
    future::Future,
    sync::Mutex,
    task::Poll,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    DedupLayer, Failure, Message, Outcome, Outgoing, PublishError,
    dedup::{Gate, StoreKey, protocol::State},
    memory::{MemoryBroker, MemoryStore, PublishFault},
    message::{Defect, Origin},
};

const SECOND: Duration = Duration::from_secs(1);

fn broker() -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("dead", 1);
    broker
}

fn failing(
    failure: impl Fn() -> Failure + Clone + Send + 'static,
) -> impl Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + 'static {
    service_fn(move |_: Message| {
        let failure = failure();
        async move { Err::<(), _>(failure) }
    })
}

fn origin() -> Origin {
    Origin::Log { system: "memory", topic: "orders".into(), partition: 3, offset: 17 }
}

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn the_headers_are_exactly_those_of_the_wire_format() {
    let broker = broker();
    let layer = DeadLetterLayer::new(broker.publisher(), "dead").consumer("mails").clock(|| at(5042));
    let message = Message::builder()
        .payload("{}")
        .key("k")
        .header("trace", "1")
        .header("dead-letter-reason", "somebody else's")
        .header("dead-letter-topic", "elsewhere")
        .header("dead-letter-color", "red")
        .header("trace", "2")
        .timestamp(at(1001))
        .origin(origin())
        .defect(Defect::new("", vec!["header \"\\xff\"".into()]));
    let stack = layer.layer(failing(|| Failure::permanent(std::io::Error::other("card expired"))));
    assert_eq!(stack.oneshot(message.build()).await.unwrap(), Outcome::DeadLettered);
    let dead = &broker.records("dead")[0];
    let (key, trace): (_, Vec<_>) =
        (dead.key().unwrap(), dead.headers().get_all("trace").flatten().collect());
    assert_eq!((&key[..], &dead.payload()[..]), (&b"k"[..], &b"{}"[..]));
    assert_eq!(trace, ["1", "2"]);
    let ours: Vec<_> = dead.headers().iter().filter(|(name, _)| *name != "trace").collect();
    let headers: BTreeMap<_, _> =
        ours.iter().map(|(name, value)| (*name, std::str::from_utf8(value.unwrap()).unwrap())).collect();
    assert_eq!(ours.len(), headers.len(), "none is repeated");
    let expected = [
        ("dead-letter-attempts", "1"),
        ("dead-letter-consumer", "mails"),
        ("dead-letter-dropped", "header \"\\xff\""),
        ("dead-letter-error", "card expired"),
        ("dead-letter-first-failed-at", "1970-01-01T00:00:05.042Z"),
        ("dead-letter-last-failed-at", "1970-01-01T00:00:05.042Z"),
        ("dead-letter-offset", "17"),
        ("dead-letter-partition", "3"),
        ("dead-letter-reason", "permanent"),
        ("dead-letter-source", "memory"),
        ("dead-letter-timestamp", "1970-01-01T00:00:01.001Z"),
        ("dead-letter-topic", "orders"),
    ];
    assert_eq!(headers.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_stays_one_and_a_message_without_an_id_gets_none() {
    let broker = broker();
    let mut headers = crate::Headers::new();
    headers.append_null("nothing");
    let message = Message::builder().key("k").headers(headers).build();
    let stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(|| Failure::permanent("no")));
    stack.oneshot(message).await.unwrap();
    let dead = &broker.records("dead")[0];
    assert!(dead.is_tombstone() && dead.id().is_none());
    assert_eq!(dead.headers().get_all("nothing").collect::<Vec<_>>(), [None]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_may_name_its_own_target() {
    let broker = broker();
    broker.create_topic("refunds.dead", 1);
    let failure = || Failure::permanent("no").dead_letter_to("refunds.dead");
    let stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(failure));
    stack.oneshot(Message::new("{}")).await.unwrap();
    assert_eq!((broker.records("refunds.dead").len(), broker.records("dead").len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_back_passes_through() {
    let broker = broker();
    let stack =
        DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(|| Failure::cancelled("shutdown")));
    assert!(stack.oneshot(Message::new("{}")).await.unwrap_err().is_cancelled());
    assert!(broker.records("dead").is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_too_large_goes_without_its_error_text() {
    let broker = broker();
    broker.set_max_message_bytes("dead", 500);
    let stack = DeadLetterLayer::new(broker.publisher(), "dead")
        .layer(failing(|| Failure::permanent("x".repeat(1000))));
    assert_eq!(stack.oneshot(Message::new("{}")).await.unwrap(), Outcome::DeadLettered);
    let dead = &broker.records("dead")[0];
    assert!(!dead.headers().contains("dead-letter-error"));
    assert_eq!(dead.headers().get_str("dead-letter-reason"), Some("permanent"));
}

#[tokio::test(start_paused = true)]
async fn one_that_fits_nowhere_holds_up_only_itself_and_is_handed_back_in_the_end() {
    let broker = broker();
    broker.set_max_message_bytes("dead", 500);
    let layer = DeadLetterLayer::new(broker.publisher(), "dead");
    let mut stack = layer.layer(failing(|| Failure::permanent("no")));
    let token = CancellationToken::new();
    let large = Message::new("x".repeat(1000)).with_cancellation(token.clone());
    let held = tokio::spawn(stack.ready().await.unwrap().call(large));
    sleep(60 * SECOND).await;
    assert!(!held.is_finished());
    let other = stack.ready().now_or_never().expect("the source is not paused for it").unwrap();
    assert_eq!(other.call(Message::new("{}")).await.unwrap(), Outcome::DeadLettered);
    token.cancel();
    assert!(held.await.unwrap().unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn fm27_a_target_that_is_away_pauses_and_only_the_publish_is_repeated() {
    for fault in [PublishFault::Unavailable, PublishFault::Unroutable, PublishFault::Refused] {
        let broker = broker();
        let calls = Arc::new(Mutex::new(0));
        let inner = service_fn({
            let calls = calls.clone();
            move |_: Message| {
                *calls.lock().unwrap() += 1;
                async { Err::<(), _>(Failure::permanent("no")) }
            }
        });
        let mut stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(inner);
        broker.fail_next_publishes(5, fault);
        let handled = tokio::spawn(stack.ready().await.unwrap().call(Message::new("{}")));
        sleep(SECOND).await;
        assert!(stack.ready().now_or_never().is_none(), "{fault:?}: not ready while its target is away");
        assert_eq!(handled.await.unwrap().unwrap(), Outcome::DeadLettered);
        assert!(stack.ready().now_or_never().is_some());
        assert_eq!((*calls.lock().unwrap(), broker.records("dead").len()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn fm25_a_dead_letter_that_waits_for_its_target_is_handed_back_and_the_layer_ready_again() {
    let broker = broker();
    broker.fail_next_publishes(1000, PublishFault::Unavailable);
    let mut stack =
        DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(|| Failure::permanent("no")));
    let token = CancellationToken::new();
    let message = Message::new("{}").with_cancellation(token.clone());
    let handled = tokio::spawn(stack.ready().await.unwrap().call(message));
    sleep(60 * SECOND).await;
    token.cancel();
    assert!(handled.await.unwrap().unwrap_err().is_cancelled());
    assert!(stack.ready().now_or_never().is_some());
}

/// A dead store inside is not hidden.
#[tokio::test(start_paused = true)]
async fn fm31_around_a_dedup_layer_whose_store_is_down_it_is_not_ready() {
    let (broker, store) = (broker(), MemoryStore::new());
    let mut stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(DedupLayer::new(store.clone(), "c").as_process(1, Gate::new()))
        .service(failing(|| Failure::permanent("no")));
    assert!(stack.ready().now_or_never().is_some());
    store.set_down(true);
    assert!(stack.ready().now_or_never().is_none());
    let woken = tokio::spawn(async move { stack.ready().await.map(|_| ()) });
    sleep(SECOND).await;
    store.set_down(false);
    woken.await.unwrap().unwrap();
}

/// A publisher whose confirm comes when the test says so.
#[derive(Clone, Default)]
struct Confirming(Arc<tokio::sync::Notify>);

impl Publisher for Confirming {
    fn publish(
        &self,
        _: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let confirm = self.0.clone();
        async move {
            confirm.notified().await;
            Ok(())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fm33_the_key_is_dead_lettered_after_the_confirm_and_not_before() {
    let (confirm, store) = (Confirming::default(), MemoryStore::new());
    let key = StoreKey::new("c".into(), "a".into());
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(confirm.clone(), "dead"))
        .layer(DedupLayer::new(store.clone(), "c").as_process(1, Gate::new()))
        .service(failing(|| Failure::permanent("no")));
    let message = Message::builder().payload("{}").id("a").build();
    let mut handled = Box::pin(stack.clone().oneshot(message.clone()));
    for _ in 0..100 {
        assert!(std::future::poll_fn(|cx| Poll::Ready(handled.poll_unpin(cx))).await.is_pending());
        assert!(matches!(store.state(&key), State::Claimed(_)));
        sleep(SECOND).await;
    }
    // Dropped before the confirm, it counts as failed and may run again.
    drop(handled);
    let State::Released(numbers) = store.state(&key) else { panic!("{:?}", store.state(&key)) };
    assert_eq!((numbers.attempts, numbers.crashes), (1, 0));
    sleep(SECOND).await;
    confirm.0.notify_one();
    assert_eq!(stack.oneshot(message).await.unwrap(), Outcome::DeadLettered);
    assert!(matches!(store.state(&key), State::DeadLettered(_)));
}

#[tokio::test(start_paused = true)]
async fn fm25_a_transient_failure_of_a_cancelled_message_is_handed_back() {
    let broker = broker();
    let layer = DeadLetterLayer::new(broker.publisher(), "dead");
    let token = CancellationToken::new();
    token.cancel();
    let message = Message::new("{}").with_cancellation(token);
    let stack = layer.layer(failing(|| Failure::transient("stopped half way")));
    assert!(stack.oneshot(message.clone()).await.unwrap_err().is_cancelled());
    assert!(broker.records("dead").is_empty());
    let stack = layer.layer(failing(|| Failure::permanent("no such order")));
    assert_eq!(stack.oneshot(message).await.unwrap(), Outcome::DeadLettered);
}

#[tokio::test(start_paused = true)]
async fn a_target_of_its_own_that_does_not_exist_is_passed_over_for_the_layers() {
    let broker = broker();
    let failure = || Failure::permanent("no").dead_letter_to("misspelt");
    let stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(failure));
    let handled = tokio::time::timeout(SECOND, stack.oneshot(Message::new("{}"))).await;
    assert_eq!(handled.expect("it waits for a target that does not exist").unwrap(), Outcome::DeadLettered);
    assert_eq!(broker.records("dead").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_target_of_its_own_that_is_away_holds_up_only_its_message() {
    let broker = broker();
    broker.create_topic("refunds.dead", 1);
    broker.fail_next_publishes(5, PublishFault::Refused);
    let failure = || Failure::permanent("no").dead_letter_to("refunds.dead");
    let mut stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(failure));
    let handled = tokio::spawn(stack.ready().await.unwrap().call(Message::new("{}")));
    sleep(SECOND).await;
    assert!(!handled.is_finished());
    assert!(stack.ready().now_or_never().is_some(), "the source is not paused for it");
    assert_eq!(handled.await.unwrap().unwrap(), Outcome::DeadLettered);
    assert_eq!(broker.records("refunds.dead").len(), 1);
}

/// A redrive is cut off, the original comes again before it and fails.
#[tokio::test(start_paused = true)]
async fn fm09_a_dead_letter_counts_the_redrives_that_the_store_knows_of() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use crate::dead_letters::{DeadLetter, Place, redriven};

    let broker = broker();
    let (store, repaired) = (MemoryStore::new(), Arc::new(AtomicBool::new(false)));
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(DedupLayer::new(store, "c"))
        .service(service_fn({
            let repaired = repaired.clone();
            move |message: Message| {
                let repaired = repaired.clone();
                async move {
                    message
                        .wait_or_cancelled(sleep(SECOND))
                        .await
                        .ok_or_else(|| Failure::cancelled("stop"))?;
                    if repaired.load(Ordering::SeqCst) { Ok(()) } else { Err(Failure::permanent("no")) }
                }
            }
        }));
    let original = || Message::builder().payload("x").id("1").build();
    assert_eq!(stack.clone().oneshot(original()).await.unwrap(), Outcome::DeadLettered);
    let redrive = |nth: usize| {
        let letter = DeadLetter::new(Place { scope: 0, seq: 0 }, broker.records("dead")[nth].clone());
        let outgoing = redriven(&letter, Some("t".into()), std::time::SystemTime::now()).unwrap();
        Message::builder().payload("x").headers(outgoing.headers()).build()
    };
    let token = CancellationToken::new();
    token.cancel();
    let cut_off = stack.clone().oneshot(redrive(0).with_cancellation(token)).await;
    assert!(cut_off.unwrap_err().is_cancelled());
    sleep(SECOND).await;
    assert_eq!(stack.clone().oneshot(original()).await.unwrap(), Outcome::DeadLettered);
    assert_eq!(stack.clone().oneshot(redrive(0)).await.unwrap(), Outcome::Duplicate);
    repaired.store(true, Ordering::SeqCst);
    assert_eq!(
        stack.oneshot(redrive(1)).await.unwrap(),
        Outcome::Processed,
        "and not taken for the first redrive"
    );
}

/// A producer that stamps microseconds where milliseconds belong: no time of ours can name the year 55840.
#[tokio::test(start_paused = true)]
async fn a_timestamp_beyond_all_years_keeps_no_message_from_being_set_aside() {
    let broker = broker();
    let stack = DeadLetterLayer::new(broker.publisher(), "dead").layer(failing(|| Failure::permanent("no")));
    let message = Message::builder().timestamp(at(1_700_000_000_042_000)).origin(origin()).build();
    assert_eq!(stack.oneshot(message).await.unwrap(), Outcome::DeadLettered);
    let dead = &broker.records("dead")[0];
    assert_eq!(dead.headers().get_str("dead-letter-timestamp"), Some("9999-12-31T23:59:59.999Z"));
}
