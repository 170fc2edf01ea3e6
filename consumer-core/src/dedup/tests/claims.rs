//! Claiming, joining, renewing, counting.

use super::*;
use crate::scope::{Run, Scope};

#[tokio::test(start_paused = true)]
async fn fm01_a_duplicate_in_this_process_waits_for_the_first_and_is_then_a_duplicate() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            slow(10)
        }
    });
    let (first, second) = (process.spawn(message("a")), process.spawn(message("a")));
    sleep(9 * SECOND).await;
    assert!(!second.is_finished());
    assert_eq!(store.memory.stats().claims, 1, "the second one does not ask the store meanwhile");
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Processed);
    assert_eq!(second.await.unwrap().unwrap(), Outcome::Duplicate);
    assert_eq!(calls.get(), 1);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm24_a_duplicate_runs_when_the_first_one_has_failed() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |message| match calls.add() {
            1 => fails(Failure::transient("down")),
            _ => {
                assert_eq!(message.attempt(), 2);
                ok()
            }
        }
    });
    let (first, second) = (process.spawn(message("a")), process.spawn(message("a")));
    let failure = first.await.unwrap().unwrap_err();
    sleep(SECOND).await;
    assert!(!second.is_finished(), "the claim travels in the failure");
    assert!(matches!(store.state("a"), State::Claimed(_)));
    drop(failure);
    assert_eq!(second.await.unwrap().unwrap(), Outcome::Processed);
    assert_eq!(calls.get(), 2);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm01_a_duplicate_in_another_process_waits_without_hammering_the_store() {
    let (store, calls) = (Spy::new(), Count::default());
    let handler = {
        let calls = calls.clone();
        move |_| {
            calls.add();
            slow(100)
        }
    };
    let (a, b) = (process(&store, 1, handler.clone()), process(&store, 2, handler));
    let first = a.spawn(message("a"));
    sleep(SECOND).await;
    let second = b.spawn(message("a"));
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Processed);
    assert!(store.memory.stats().claims < 20, "{:?}", store.memory.stats());
    let done = Instant::now();
    assert_eq!(second.await.unwrap().unwrap(), Outcome::Duplicate);
    assert!(done.elapsed() <= LEASE * 5 / 4);
    assert_eq!(calls.get(), 1);
    a.assert_empty();
    b.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm30_one_task_renews_all_claims_in_batches_and_nobody_gets_in() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            slow(200)
        }
    });
    let running: Vec<_> = (0..50).map(|n| process.spawn(message(&n.to_string()))).collect();
    sleep(SECOND).await;
    assert_eq!(calls.get(), 50);
    for _ in 0..190 {
        sleep(SECOND).await;
        let rival = store.memory.claim(request("7", 2)).await.unwrap();
        assert!(matches!(rival, ClaimReply::Busy { .. }), "{rival:?}");
    }
    for handled in running {
        assert_eq!(handled.await.unwrap().unwrap(), Outcome::Processed);
    }
    // 200 s are 13 halves of a lease, and a claim is prolonged a little before it is half used up.
    let renewals = store.renew_calls();
    assert!((13..=16).contains(&renewals), "{renewals} calls for 50 claims");
    assert_eq!(store.memory.stats().renewals, 50 * renewals as u64);
    let calls = store.renew_calls();
    sleep(10 * LEASE).await;
    assert_eq!(store.renew_calls(), calls, "nothing is left to renew");
    process.assert_empty();
}

/// A claim that was answered late must not slip between two looks of the renewal task.
#[tokio::test(start_paused = true)]
async fn fm30_a_claim_that_was_answered_late_is_renewed_in_time() {
    for late in [5, 11, 13, 20, 26, 28] {
        let (store, started) = (Spy::new(), Count::default());
        let process = process(&store, 1, {
            let started = started.clone();
            move |message| {
                if message.id().unwrap() == "late" {
                    started.add();
                }
                slow(100)
            }
        });
        store.delay_claims(late * SECOND);
        let late_one = process.spawn(message("late"));
        // Meanwhile the renewal task is kept busy by others, which it finds fresh.
        sleep(late * SECOND - SECOND / 2).await;
        store.delay_claims(Duration::ZERO);
        let other = process.spawn(message("other"));
        for _ in 0..1000 {
            sleep(SECOND / 10).await;
            if started.get() > 0 && !late_one.is_finished() {
                let rival = store.memory.claim(request("late", 2)).await.unwrap();
                assert!(matches!(rival, ClaimReply::Busy { .. }), "{late} s late: {rival:?}");
            }
        }
        assert_eq!(late_one.await.unwrap().unwrap(), Outcome::Processed, "{late} s late");
        assert_eq!(other.await.unwrap().unwrap(), Outcome::Processed);
        assert_eq!(started.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn fm03_a_claim_whose_reply_is_lost_is_found_again() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            ok()
        }
    });
    store.memory.lose_replies(3);
    let start = Instant::now();
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Processed);
    assert!(start.elapsed() < LEASE, "it did not wait for its own lease to end");
    assert_eq!((calls.get(), store.memory.stats().claims), (1, 4));
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm24_attempts_and_epoch_grow_with_every_failed_call_and_only_ok_completes() {
    let (store, seen) = (Spy::new(), Arc::new(Mutex::new(Vec::new())));
    let process = process(&store, 1, {
        let seen = seen.clone();
        move |message| {
            let mut seen = seen.lock().unwrap();
            seen.push((message.attempt(), message.epoch()));
            if seen.len() < 4 { fails(Failure::transient("down")) } else { ok() }
        }
    });
    for attempt in 1..4 {
        let failure = process.call(message("a")).await.unwrap_err();
        assert_eq!(failure.attempts(), Some(attempt));
        drop(failure);
        let State::Released(numbers) = store.state("a") else { panic!("{:?}", store.state("a")) };
        assert_eq!((numbers.attempts, numbers.crashes, numbers.suspect), (attempt, 0, false));
    }
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Processed);
    assert!(matches!(store.state("a"), State::Completed { .. }));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(seen.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn fm39_what_is_handed_back_counts_nothing() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |message| match calls.add() {
            1..=20 => fails(Failure::cancelled("shutdown")),
            _ => {
                assert_eq!(message.attempt(), 1);
                ok()
            }
        }
    });
    for _ in 0..10 {
        assert!(process.call(message("a")).await.unwrap_err().is_cancelled());
        let dropped = tokio::time::timeout(SECOND, process.call(message("b")));
        let _ = dropped.await;
    }
    for id in ["a", "b"] {
        let State::Released(numbers) = store.state(id) else { panic!("{:?}", store.state(id)) };
        assert_eq!((numbers.attempts, numbers.crashes, numbers.suspect), (0, 0, false));
        assert_eq!(process.call(message(id)).await.unwrap(), Outcome::Processed);
    }
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm11_only_deaths_alone_count_and_at_the_limit_no_call_is_made() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            ok()
        }
    });
    dies_with(&store.memory, "a", 91, Mode::Normal).await;
    dies_with(&store.memory, "a", 92, Mode::Suspect).await;
    for nonce in 93..95 {
        dies_with(&store.memory, "a", nonce, Mode::Alone).await;
    }
    let State::Claimed(held) = store.state("a") else { panic!("claimed") };
    assert_eq!(held.numbers.crashes, 1, "the last one is not known to be dead yet");
    dies_with(&store.memory, "a", 95, Mode::Alone).await;
    let failure = process.call(message("a")).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Exhausted);
    assert_eq!(failure.cause(), "process died 3 times while handling this message alone");
    assert_eq!((failure.attempts(), calls.get()), (Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn fm11_a_claim_of_our_own_that_ran_out_is_no_crash() {
    let store = Spy::new();
    dies_with(&store.memory, "a", 1, Mode::Normal).await;
    let process = process(&store, 1, |_| ok());
    let running = process.spawn(message("a"));
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Processed);
    let Ok(ClaimReply::Completed) = store.memory.claim(request("a", 2)).await else { panic!("completed") };
}

#[tokio::test(start_paused = true)]
async fn fm17_another_payload_under_a_known_id_is_a_conflict_and_never_a_duplicate() {
    let store = Spy::new();
    let process = process(&store, 1, |_| ok());
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Processed);
    let other = Message::builder().payload("other").id("a").build();
    let failure = process.call(other).await.unwrap_err();
    assert_eq!((failure.kind(), failure.attempts()), (FailureKind::Conflict, Some(0)));
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Duplicate);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm38_a_failed_message_may_be_corrected_and_sent_again() {
    let store = Spy::new();
    let process = process(&store, 1, |message| match message.payload() == "{}" {
        true => fails(Failure::permanent("no such order")),
        false => ok(),
    });
    drop(process.call(message("a")).await);
    let corrected = Message::builder().payload("corrected").id("a").build();
    assert_eq!(process.call(corrected).await.unwrap(), Outcome::Processed);
    assert_eq!(process.call(message("a")).await.unwrap_err().kind(), FailureKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn fm26_a_message_without_a_key_or_with_a_defect_fails_for_good_and_touches_no_store() {
    let store = Spy::new();
    let process = process(&store, 1, |_| panic!("no handler sees it"));
    let failure = process.call(Message::new("{}")).await.unwrap_err();
    assert_eq!((failure.kind(), failure.attempts()), (FailureKind::NoKey, Some(0)));
    let defect = crate::Defect::new("a header name is not text", vec![]);
    let failure = process.call(Message::builder().id("a").defect(defect).build()).await.unwrap_err();
    assert_eq!((failure.kind(), failure.attempts()), (FailureKind::Undecodable, Some(1)));
    assert!(store.memory.is_empty());
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_is_processed_where_that_is_the_policy() {
    let store = Spy::new();
    let layer = DedupLayer::new(store.clone(), "c").missing_key(MissingKey::Process);
    let handled = layer.layer(service_fn(|_| ok())).oneshot(Message::new("{}")).await;
    assert_eq!(handled.unwrap(), Outcome::Processed);
    assert!(store.memory.is_empty());
}

/// One stack may serve two consumers at once.
#[tokio::test(start_paused = true)]
async fn a_stack_that_two_runs_share_registers_its_store_once_with_each() {
    let store = Spy::new();
    let process = process(&store, 1, |_| ok());
    let runs = [Run::new(), Run::new()];
    for n in 0..100 {
        for run in &runs {
            let scope = Scope::new(tokio_util::sync::CancellationToken::new(), run.clone());
            let id = format!("{}-{n}", run.id());
            process.call(message(&id).with_scope(Arc::new(scope))).await.unwrap();
        }
    }
    assert_eq!(store.flushes(), 0);
    for run in &runs {
        assert!(run.flush_stores(SECOND).await);
    }
    assert_eq!(store.flushes(), 2);
}

/// A handler that heeds the cancellation says so with whatever error it has.
#[tokio::test(start_paused = true)]
async fn fm25_fm39_a_transient_failure_of_a_cancelled_message_counts_nothing_and_a_permanent_one_does() {
    let store = Spy::new();
    let process = process(&store, 1, |message| {
        Box::pin(async move {
            message.cancellation().cancelled().await;
            if message.id().unwrap() == "permanent" {
                return Err(Failure::permanent("no such order"));
            }
            Err(Failure::transient("stopped half way"))
        })
    });
    for (id, attempts) in [("transient", 0), ("permanent", 1)] {
        let token = tokio_util::sync::CancellationToken::new();
        let running = process.spawn(message(id).with_cancellation(token.clone()));
        sleep(SECOND).await;
        token.cancel();
        let failure = running.await.unwrap().unwrap_err();
        assert_eq!(failure.is_cancelled(), attempts == 0, "{failure:?}");
        drop(failure);
        let State::Released(numbers) = store.state(id) else { panic!("{:?}", store.state(id)) };
        assert_eq!(numbers.attempts, attempts);
    }
    sleep(SECOND).await;
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm25_a_claim_that_is_granted_after_the_stop_starts_no_handler() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            ok()
        }
    });
    store.delay_claims(5 * SECOND);
    let token = tokio_util::sync::CancellationToken::new();
    let running = process.spawn(message("a").with_cancellation(token.clone()));
    sleep(SECOND).await;
    token.cancel();
    assert!(running.await.unwrap().unwrap_err().is_cancelled());
    assert_eq!(calls.get(), 0);
    let State::Released(numbers) = store.state("a") else { panic!("{:?}", store.state("a")) };
    assert_eq!((numbers.attempts, numbers.crashes, numbers.suspect), (0, 0, false));
    sleep(SECOND).await;
    process.assert_empty();
}

/// A panic out there would pass by the layer that catches them, and the message would come again for ever.
#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_fails_its_message_for_good() {
    let store = Spy::new();
    let layer = DedupLayer::new(store.clone(), "c");
    let by_key = layer.clone().key(IdempotencyKey::from_fn(|_| panic!("boom")));
    let by_fingerprint = layer.fingerprint(|_| panic!("boom"));
    for (layer, what) in [(by_key, "the idempotency key"), (by_fingerprint, "the fingerprint")] {
        let failure = layer.layer(service_fn(|_| ok())).oneshot(message("a")).await.unwrap_err();
        assert!(failure.is_permanent());
        assert_eq!(
            (failure.attempts(), failure.cause()),
            (Some(0), format!("the closure for {what}: panicked: boom"))
        );
        assert!(store.memory.is_empty());
    }
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn calls_and_answers_are_measured_under_the_name_of_the_layer() {
    let (kept, store) = (crate::layers::metrics::tests::Kept::default(), Spy::new());
    let process = metrics::with_local_recorder(&kept, || {
        let flaky = service_fn(|message: Message| async move {
            if message.attempt() == 1 { Err(Failure::transient("down")) } else { Ok(()) }
        });
        around(&store, 1, crate::RetryLayer::fixed(SECOND).layer(flaky))
    });
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Processed);
    let kept = kept.read();
    let value = |name: &str| kept.get(name).copied();
    assert_eq!(value("consumer_attempts_total consumer=c,result=failed"), Some(1), "{kept:?}");
    assert_eq!(value("consumer_attempts_total consumer=c,result=ok"), Some(1));
    assert_eq!(value("consumer_store_duration_seconds consumer=c,operation=claim"), Some(1));
    assert_eq!(value("consumer_store_duration_seconds consumer=c,operation=complete"), Some(1));
}
