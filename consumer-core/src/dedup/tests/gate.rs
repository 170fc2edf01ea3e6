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
    assert_eq!(held.mode, Mode::Suspect, "to die now would prove nothing, and it has to be alone again");
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

/// A wait before the call must not hide the death that comes with the call.
#[cfg(feature = "rate-limit")]
#[tokio::test(start_paused = true)]
async fn fm11_a_message_that_kills_under_a_rate_limit_beside_others_is_given_up() {
    let world = Spy::new();
    let mut deaths = 0;
    let failure = loop {
        let (store, dying) = (world.beside(), Count::default());
        let inner = crate::RateLimitLayer::per(1, SECOND).layer(service_fn({
            let dying = dying.clone();
            move |message: Message| {
                let dying = dying.clone();
                async move {
                    if message.id().unwrap() == "poison" {
                        dying.add();
                        std::future::pending::<()>().await;
                    }
                    sleep(SECOND / 2).await;
                    Ok::<_, Failure>(())
                }
            }
        }));
        let process = around(&store, 100 + deaths, inner);
        let ordinary = tokio::spawn({
            let process = process.clone();
            async move {
                for n in 0.. {
                    process.spawn(message(&format!("{n} beside {deaths}")));
                    sleep(SECOND / 2).await;
                }
            }
        });
        sleep(2 * SECOND).await;
        let poison = process.spawn(message("poison"));
        while dying.get() == 0 && !poison.is_finished() {
            sleep(SECOND / 10).await;
        }
        ordinary.abort();
        if poison.is_finished() {
            break poison.await.unwrap().unwrap_err();
        }
        store.kill();
        world.memory.expire_claims();
        deaths += 1;
        assert!(deaths < 20, "it kills for ever");
    };
    assert_eq!(failure.kind(), FailureKind::Exhausted);
    assert_eq!(deaths, 4, "the first death makes the suspect, three count");
}

#[tokio::test(start_paused = true)]
async fn two_waits_of_a_suspect_do_not_wait_for_each_other() {
    let store = Spy::new();
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            if message.id().unwrap() == "suspect" {
                // Both come back while another message holds them up.
                let waits = [2, 3].map(|n| message.while_waiting(sleep(n * SECOND)));
                futures_util::future::join_all(waits).await;
                return Ok(());
            }
            sleep(10 * SECOND).await;
            Ok(())
        })
    });
    let suspect = process.spawn(message("suspect"));
    sleep(SECOND).await;
    let other = process.spawn(message("other"));
    assert_eq!(other.await.unwrap().unwrap(), Outcome::Processed);
    let done = tokio::time::timeout(SECOND, suspect).await;
    assert_eq!(done.expect("it waits for itself").unwrap().unwrap(), Outcome::Processed);
    process.assert_empty();
}

/// The second wait queues behind a suspect, which waits for the place that the first one has got.
#[tokio::test(start_paused = true)]
async fn two_waits_of_a_message_do_not_wait_for_each_other_around_a_suspect() {
    let store = Spy::new();
    for suspect in ["suspect-0", "suspect-1"] {
        dies_with(&store.memory, suspect, 9, Mode::Normal).await;
    }
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            if message.id().unwrap() == "ordinary" {
                let waits = [2, 4].map(|n| message.while_waiting(sleep(n * SECOND)));
                futures_util::future::join_all(waits).await;
            } else {
                sleep(10 * SECOND).await;
            }
            Ok(())
        })
    });
    let ordinary = process.spawn(message("ordinary"));
    sleep(SECOND).await;
    let first = process.spawn(message("suspect-0"));
    sleep(2 * SECOND).await;
    let second = process.spawn(message("suspect-1"));
    for call in [first, ordinary, second] {
        let done = tokio::time::timeout(60 * SECOND, call).await;
        assert_eq!(done.expect("they wait for each other").unwrap().unwrap(), Outcome::Processed);
    }
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm37_a_suspect_that_was_taken_over_while_it_waited_does_not_go_on() {
    let (store, effects) = (Spy::new(), Count::default());
    dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
    let process = process(&store, 1, {
        let effects = effects.clone();
        move |message| {
            let effects = effects.clone();
            Box::pin(async move {
                message.while_waiting(sleep(2 * SECOND)).await;
                effects.add();
                Ok(())
            })
        }
    });
    let suspect = process.spawn(message("suspect"));
    sleep(SECOND).await;
    store.memory.expire_claims();
    let taken = store.memory.claim(request("suspect", 2)).await;
    assert!(matches!(taken, Ok(ClaimReply::Claimed(_))));
    assert!(suspect.await.unwrap().unwrap_err().is_cancelled());
    assert_eq!(effects.get(), 0);
    sleep(SECOND).await;
    process.assert_empty();
}

/// Without a claim a message can kill the process, too, and the suspect beside it would be charged.
#[tokio::test(start_paused = true)]
async fn fm23_what_runs_without_a_claim_does_not_run_beside_a_suspect() {
    for waits in [false, true] {
        let (store, gate) = (Spy::new(), Gate::new());
        dies_with(&store.memory, "suspect", 9, Mode::Normal).await;
        let events = Events::default();
        let layer = DedupLayer::new(store.clone(), "c").missing_key(MissingKey::Process);
        let handler = service_fn({
            let events = events.clone();
            move |message: Message| {
                let events = events.clone();
                async move {
                    let id = message.id().map_or("keyless", |_| "suspect");
                    events.lock().unwrap().push(("start", id.to_owned()));
                    match id {
                        "keyless" if waits => message.while_waiting(sleep(10 * SECOND)).await,
                        _ => sleep(10 * SECOND).await,
                    }
                    events.lock().unwrap().push(("end", id.to_owned()));
                    Ok::<_, Failure>(())
                }
            }
        });
        let dedup = layer.as_process(1, gate.clone()).layer(handler);
        let keyless = || tokio::spawn(dedup.clone().oneshot(Message::new("{}")));
        let first = keyless();
        sleep(SECOND).await;
        let suspect = tokio::spawn(dedup.clone().oneshot(message("suspect")));
        sleep(SECOND).await;
        let last = keyless();
        for task in [first, suspect, last] {
            assert_eq!(task.await.unwrap().unwrap(), Outcome::Processed);
        }
        let events = events.lock().unwrap();
        let names: Vec<_> = events.iter().map(|(what, id)| format!("{what} {id}")).collect();
        if waits {
            assert_eq!(names[..3], ["start keyless", "start suspect", "end suspect"]);
        } else {
            assert_eq!(names[..4], ["start keyless", "end keyless", "start suspect", "end suspect"]);
        }
        assert_eq!(gate.enter(true).now_or_never(), Some(Pass::Alone), "every place is back");
    }
}
