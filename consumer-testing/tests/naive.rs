//! Failure modes, each shown with the naive consumer going wrong next to the framework doing right.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::time::Duration;

use consumer_core::{
    Delivery, Failure, FailureKind, Message, Outcome, Outgoing, Publisher, Settlement, Source,
    dedup::{
        ClaimReply, ClaimRequest, DedupLayer, DedupStore, Gate, Owner, Resolution, StoreKey, protocol::State,
    },
    memory::{MemoryBroker, MemoryStore},
};
use consumer_testing::{
    drive::Driven,
    handlers::TestHandler,
    naive::{self, Mark, NaiveDedupLayer, SeenSet, Status, TwoStepStore},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);

fn message() -> Message {
    Message::builder().id("m-1").payload("{}").build()
}

async fn call<S>(service: &S, message: Message) -> Result<Outcome, Failure>
where
    S: Service<Message, Response = Outcome, Error = Failure> + Clone,
{
    service.clone().oneshot(message).await
}

fn naive(mark: Mark, handler: &TestHandler) -> naive::NaiveDedup<TestHandler> {
    NaiveDedupLayer::new(SeenSet::new(), mark).layer(handler.clone())
}

/// The framework's deduplication in a process of its own.
fn ours(
    store: &MemoryStore,
    process: u128,
    handler: &TestHandler,
) -> consumer_core::dedup::Dedup<TestHandler, MemoryStore> {
    let layer = DedupLayer::new(store.clone(), "mails").lease(LEASE).as_process(process, Gate::new());
    layer.layer(handler.clone())
}

/// A claim of a process that is dead by the time the test goes on.
fn claim_of_the_dead() -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("mails".into(), "m-1".into()),
        owner: Owner { process: 666, seq: 1 },
        fingerprint: None,
        lease: LEASE,
        grace: LEASE * 100,
        attempt: 1,
        redrive: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn fm01_two_consumers_ask_at_once() {
    let handler = TestHandler::new().takes(SECOND);
    let service = naive(Mark::After, &handler);
    let (first, second) = tokio::join!(call(&service, message()), call(&service, message()));
    assert_eq!((first.unwrap(), second.unwrap()), (Outcome::Processed, Outcome::Processed));
    assert_eq!(handler.effects().len(), 2, "naive: both run the handler");

    let handler = TestHandler::new().takes(SECOND);
    let store = MemoryStore::new();
    let (a, b) = (ours(&store, 1, &handler), ours(&store, 2, &handler));
    let (first, second) = tokio::join!(call(&a, message()), call(&b, message()));
    assert_eq!((first.unwrap(), second.unwrap()), (Outcome::Processed, Outcome::Duplicate));
    assert_eq!(handler.effects().len(), 1, "ours: one claims, the other is busy and then sees completed");
}

#[tokio::test(start_paused = true)]
async fn fm02_the_process_dies_after_the_claim() {
    let handler = TestHandler::new().takes(SECOND);
    let service = naive(Mark::Before, &handler);
    let died = tokio::time::timeout(SECOND / 2, call(&service, message())).await;
    assert!(died.is_err());
    assert_eq!(call(&service, message()).await.unwrap(), Outcome::Duplicate, "naive: acked");
    assert_eq!(handler.effects().len(), 0, "naive: the message is lost");

    let handler = TestHandler::new();
    let store = MemoryStore::new();
    let claimed = store.claim(claim_of_the_dead()).await.unwrap();
    assert!(matches!(claimed, ClaimReply::Claimed(_)));
    let redelivered = Instant::now();
    let outcome = call(&ours(&store, 1, &handler), message()).await.unwrap();
    assert_eq!(outcome, Outcome::Processed, "ours: held, then taken over");
    assert_eq!(handler.effects().len(), 1);
    assert!(redelivered.elapsed() >= LEASE, "ours: not before the lease has ended");
}

#[tokio::test]
async fn fm06_read_in_one_step_and_written_in_another() {
    let store = TwoStepStore::default();
    let key = "m-1".into();
    let slow = store.get(&key).await;
    assert_eq!(slow, None, "a slow consumer reads: nobody has it");
    store.put(&key, Status::InProgress).await;
    store.put(&key, Status::Completed).await;
    store.put(&key, Status::InProgress).await;
    assert_eq!(store.get(&key).await, Some(Status::InProgress), "naive: completed has gone back");

    let store = MemoryStore::new();
    let Ok(ClaimReply::Claimed(claim)) = store.claim(claim_of_the_dead()).await else { panic!("claimed") };
    let owner = Owner { process: 2, seq: 1 };
    let slow = store.claim(ClaimRequest { owner, ..claim_of_the_dead() });
    store.resolve(claim.clone(), Resolution::Completed, LEASE).await.unwrap();
    assert!(matches!(slow.await.unwrap(), ClaimReply::Busy { .. }), "read and written in one step");
    let again = store.claim(ClaimRequest { owner, ..claim_of_the_dead() }).await.unwrap();
    assert_eq!(again, ClaimReply::Completed);
    assert!(matches!(store.state(&claim.key), State::Completed { .. }), "ours: completed is absorbing");
}

async fn topic(messages: usize) -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("t", 1);
    for n in 0..messages {
        broker.publisher().publish(Outgoing::copy("t", Message::new(n.to_string()))).await.unwrap();
    }
    broker
}

#[tokio::test(start_paused = true)]
async fn fm07_a_busy_message_is_sent_back_at_once() {
    let broker = topic(1).await;
    let mut member = Driven::new(broker.source("g", ["t"]), SECOND);
    let started = Instant::now();
    for _ in 0..1_000 {
        let busy = member.next().await.expect("it comes back");
        naive::requeue_busy(member.source(), busy.tag);
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "naive: 1,000 deliveries in no time, a hot loop");

    let store = MemoryStore::new();
    store.claim(claim_of_the_dead()).await.unwrap();
    let handler = TestHandler::new();
    call(&ours(&store, 1, &handler), message()).await.unwrap();
    let asked = store.stats().claims;
    assert!(asked <= 20, "ours: held, and asked {asked} times in the whole lease");
}

#[tokio::test(start_paused = true)]
async fn fm08_the_handler_succeeds_and_recording_that_fails() {
    let handler = TestHandler::new();
    let seen = SeenSet::new();
    let service = NaiveDedupLayer::new(seen.clone(), Mark::After).layer(handler.clone());
    seen.fail_writes(1);
    assert!(call(&service, message()).await.is_err(), "naive: not acked");
    call(&service, message()).await.unwrap();
    assert_eq!(handler.effects().len(), 2, "naive: the handler runs again");

    let handler = TestHandler::new().takes(SECOND);
    let store = MemoryStore::new();
    let service = ours(&store, 1, &handler);
    let first = tokio::spawn({
        let service = service.clone();
        async move { call(&service, message()).await }
    });
    tokio::time::sleep(SECOND / 2).await;
    store.set_down(true);
    tokio::time::sleep(SECOND * 5).await;
    assert_eq!(handler.effects().len(), 1);
    assert!(!first.is_finished(), "ours: not acked before it is recorded");
    store.set_down(false);
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Processed);
    assert_eq!(call(&service, message()).await.unwrap(), Outcome::Duplicate);
    assert_eq!(handler.effects().len(), 1, "ours: once");
}

#[tokio::test(start_paused = true)]
async fn fm12_a_later_offset_is_done_first() {
    let payloads = |deliveries: Vec<Delivery>| -> Vec<String> {
        let text = |d: &Delivery| String::from_utf8_lossy(d.message.payload()).into_owned();
        deliveries.iter().map(text).collect()
    };
    let broker = topic(3).await;
    let mut member = Driven::new(broker.source("naive", ["t"]), SECOND);
    let taken = member.take(3, "fm12").await;
    let tags: Vec<_> = taken.iter().map(|delivery| delivery.tag).collect();
    naive::commit_highest(member.source(), &tags, tags[1]);
    drop(member);
    let mut member = Driven::new(broker.source("naive", ["t"]), SECOND);
    assert_eq!(payloads(member.take(1, "fm12").await), ["2"], "naive: 0 is lost");

    let mut member = Driven::new(broker.source("ours", ["t"]), SECOND);
    let taken = member.take(3, "fm12").await;
    member.source().settle(taken[1].tag, Settlement::Ack);
    drop(member);
    let mut member = Driven::new(broker.source("ours", ["t"]), SECOND);
    assert_eq!(
        payloads(member.take(3, "fm12").await),
        ["0", "1", "2"],
        "ours: nothing before it is committed"
    );
}

#[tokio::test(start_paused = true)]
async fn fm17_the_same_id_with_another_payload() {
    let other = || Message::builder().id("m-1").payload("something else").build();
    let handler = TestHandler::new();
    let service = naive(Mark::After, &handler);
    call(&service, message()).await.unwrap();
    assert_eq!(call(&service, other()).await.unwrap(), Outcome::Duplicate, "naive: acked in silence");

    let service = ours(&MemoryStore::new(), 1, &handler);
    call(&service, message()).await.unwrap();
    let failure = call(&service, other()).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Conflict, "ours: never acked");
}

#[tokio::test(start_paused = true)]
async fn fm24_a_failed_call_is_recorded_as_done() {
    let handler = TestHandler::new().fail_first(1);
    let service = naive(Mark::Before, &handler);
    assert!(call(&service, message()).await.is_err());
    assert_eq!(call(&service, message()).await.unwrap(), Outcome::Duplicate, "naive: acked");
    assert_eq!(handler.effects().len(), 0, "naive: the retry is suppressed");

    let handler = TestHandler::new().fail_first(1);
    let service = ours(&MemoryStore::new(), 1, &handler);
    drop(call(&service, message()).await.unwrap_err());
    assert_eq!(call(&service, message()).await.unwrap(), Outcome::Processed);
    assert_eq!(handler.effects().len(), 1, "ours: only success completes");
}
