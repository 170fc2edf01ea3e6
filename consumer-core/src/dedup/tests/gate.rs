//! Who may execute: many together, or one suspect alone.

use tokio_util::sync::CancellationToken;
use tower::limit::ConcurrencyLimitLayer;

use super::*;

type Events = Arc<Mutex<Vec<(&'static str, String)>>>;

fn watched(events: &Events, seconds: u32) -> impl FnMut(Message) -> Handling + Clone + Send + 'static {
    let events = events.clone();
    move |message| {
        let events = events.clone();
        Box::pin(async move {
            let id = String::from_utf8_lossy(message.id().unwrap()).into_owned();
            events.lock().unwrap().push(("start", id.clone()));
            sleep(seconds * SECOND).await;
            events.lock().unwrap().push(("end", id));
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn fm23_a_suspect_runs_alone_and_the_others_before_and_after_it() {
    let (store, events) = (Spy::new(), Events::default());
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, watched(&events, 10));
    let before: Vec<_> = ["a", "b"].map(|id| process.spawn(message(id))).into();
    sleep(SECOND).await;
    let suspect = process.spawn(message("suspect"));
    sleep(SECOND).await;
    let State::Claimed(held) = store.state("suspect") else { panic!("claimed") };
    assert_eq!(held.mode, Mode::Suspect, "waiting for its turn, it is not alone yet");
    let after: Vec<_> = ["c", "d"].map(|id| process.spawn(message(id))).into();
    sleep(10 * SECOND).await;
    let State::Claimed(held) = store.state("suspect") else { panic!("claimed") };
    assert_eq!(held.mode, Mode::Alone, "the store knows before the handler runs");
    for task in before.into_iter().chain([suspect]).chain(after) {
        assert_eq!(task.await.unwrap().unwrap(), Outcome::Processed);
    }
    let events = events.lock().unwrap();
    let at = |what, id: &str| events.iter().position(|event| *event == (what, id.to_owned())).unwrap();
    let start = at("start", "suspect");
    assert_eq!(at("end", "suspect"), start + 1, "something else ran beside it: {events:?}");
    assert_eq!(start, 4, "{events:?}");
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm23_innocent_suspects_are_cleared_by_one_run_and_charged_nothing() {
    let (store, events) = (Spy::new(), Events::default());
    for n in 0..5 {
        dies_with(&store.memory, &n.to_string(), 9, Mode::Normal).await;
    }
    let process = process(&store, 1, watched(&events, 10));
    let start = Instant::now();
    let running: Vec<_> = (0..5).map(|n| process.spawn(message(&n.to_string()))).collect();
    for task in running {
        assert_eq!(task.await.unwrap().unwrap(), Outcome::Processed);
    }
    assert_eq!(start.elapsed().as_secs(), 50, "one by one");
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_waits_is_not_alone_any_more_and_holds_up_nobody() {
    let store = Spy::new();
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            if message.id().unwrap() == "suspect" {
                message.while_waiting(sleep(100 * SECOND)).await;
            }
            Ok(())
        })
    });
    let suspect = process.spawn(message("suspect"));
    sleep(SECOND).await;
    let State::Claimed(held) = store.state("suspect") else { panic!("claimed") };
    assert_eq!(held.mode, Mode::Normal, "to die now would prove nothing");
    let other = tokio::time::timeout(SECOND, process.call(message("other"))).await;
    assert_eq!(other.expect("it need not wait").unwrap(), Outcome::Processed);
    assert_eq!(suspect.await.unwrap().unwrap(), Outcome::Processed);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_suspect_and_a_limit_inside_do_not_wait_for_each_other() {
    let (store, events) = (Spy::new(), Events::default());
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    for limit in [1, 2] {
        let inner = ConcurrencyLimitLayer::new(limit).layer(service_fn(watched(&events, 10)));
        let process = around(&store, 1, inner);
        let ids = ["a", "suspect", "b", "c", "d"];
        let running: Vec<_> = ids.iter().map(|id| process.spawn(message(&format!("{id}{limit}")))).collect();
        for task in running {
            assert_eq!(task.await.unwrap().unwrap(), Outcome::Processed);
        }
        process.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn fm25_a_waiting_message_is_handed_back_at_once_while_a_suspect_runs_alone() {
    let store = Spy::new();
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            if message.id().unwrap() == "suspect" {
                sleep(60 * SECOND).await;
                return Ok(());
            }
            let waited = message.wait_or_cancelled(sleep(2 * SECOND)).await;
            waited.ok_or_else(|| Failure::cancelled("shutdown"))
        })
    });
    let token = CancellationToken::new();
    let waiting: Vec<_> = ["in backoff", "back from it"]
        .map(|id| process.spawn(message(id).with_cancellation(token.clone())))
        .into();
    sleep(SECOND).await;
    let suspect = process.spawn(message("suspect"));
    sleep(5 * SECOND).await;
    assert!(waiting.iter().all(|task| !task.is_finished()), "they wait for the suspect");
    token.cancel();
    sleep(SECOND / 10).await;
    for task in waiting {
        assert!(task.is_finished(), "it waits for the suspect instead of going back");
        assert!(task.await.unwrap().unwrap_err().is_cancelled());
    }
    assert_eq!(suspect.await.unwrap().unwrap(), Outcome::Processed);
    process.assert_empty();
}

/// A place that is lost here is lost for ever: no suspect would run again.
#[tokio::test(start_paused = true)]
async fn two_waits_of_one_message_take_one_place() {
    let store = Spy::new();
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            if message.id().unwrap() == "suspect" {
                sleep(10 * SECOND).await;
                return Ok(());
            }
            let one = message.while_waiting(sleep(2 * SECOND));
            let two = message.while_waiting(sleep(3 * SECOND));
            tokio::join!(one, two);
            Ok(())
        })
    });
    let waiting = process.spawn(message("waits"));
    sleep(SECOND).await;
    let suspect = process.spawn(message("suspect"));
    assert_eq!(waiting.await.unwrap().unwrap(), Outcome::Processed);
    assert_eq!(suspect.await.unwrap().unwrap(), Outcome::Processed);
    process.assert_empty();
}

/// One dedup layer inside another, say by message and by order.
#[tokio::test(start_paused = true)]
async fn a_suspect_inside_of_another_claim_does_not_wait_for_itself() {
    let (store, gate) = (Spy::new(), Gate::new());
    let by_order = |message: &Message| message.headers().get("order").cloned();
    let inner = DedupLayer::new(store.clone(), "orders")
        .key(IdempotencyKey::from_fn(by_order))
        .as_process(1, gate.clone())
        .layer(service_fn(|_| slow(1)));
    let outer = DedupLayer::new(store.clone(), "c").as_process(1, gate.clone()).layer(inner);
    let order = ClaimRequest { key: StoreKey::new("orders".into(), "o-1".into()), ..request("", 9) };
    store.memory.claim(order).await.unwrap();
    store.memory.expire_claims();
    let message = Message::builder().payload("{}").id("a").header("order", "o-1").build();
    let handled = tokio::time::timeout(60 * SECOND, outer.oneshot(message)).await;
    assert_eq!(handled.expect("it waits for itself").unwrap(), Outcome::Processed);
    assert_eq!(gate.enter(true).now_or_never(), Some(Pass::Alone), "every place is back");
}
