//! The store is away, or answers that the claim is gone.

use tower::limit::ConcurrencyLimitLayer;

use super::*;

#[tokio::test(start_paused = true)]
async fn fm37_a_process_that_is_cut_off_stops_its_handler_before_the_lease_ends() {
    let (store, stopped) = (Spy::new(), Arc::new(Mutex::new(None)));
    struct OnDrop(Instant, Arc<Mutex<Option<Duration>>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            *self.1.lock().unwrap() = Some(self.0.elapsed());
        }
    }
    let process = process(&store, 1, {
        let stopped = stopped.clone();
        move |_| {
            let guard = OnDrop(Instant::now(), stopped.clone());
            Box::pin(async move {
                let _guard = guard;
                std::future::pending().await
            })
        }
    });
    let running = process.spawn(message("a"));
    sleep(100 * SECOND).await;
    assert!(!running.is_finished());
    let State::Claimed(held) = store.state("a") else { panic!("claimed") };
    store.memory.set_down(true);
    let cut_off = Instant::now();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.is_cancelled(), "{failure:?}");
    assert!(cut_off.elapsed() <= LEASE * 9 / 10 && cut_off.elapsed() >= LEASE * 4 / 10);
    assert!(stopped.lock().unwrap().is_some(), "the handler is gone when the answer is there");
    // Back before the lease is over for the store: nobody could have taken it, and nothing is held against it.
    store.memory.set_down(false);
    sleep(SECOND).await;
    let State::Released(numbers) = store.state("a") else { panic!("{:?}", store.state("a")) };
    assert_eq!((numbers.epoch, numbers.attempts, numbers.suspect), (held.numbers.epoch, 0, false));
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_lease_stops_nothing() {
    let store = Spy::new();
    let process = process(&store, 1, |_| slow(300));
    let running = process.spawn(message("a"));
    for _ in 0..4 {
        sleep(40 * SECOND).await;
        store.memory.set_down(true);
        sleep(10 * SECOND).await;
        store.memory.set_down(false);
    }
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Processed);
}

#[tokio::test(start_paused = true)]
async fn fm04_fm05_a_handler_whose_claim_was_taken_over_is_stopped() {
    let store = Spy::new();
    let process = process(&store, 1, |_| slow(300));
    let running = process.spawn(message("a"));
    sleep(SECOND).await;
    store.memory.expire_claims();
    let Ok(ClaimReply::Claimed(other)) = store.memory.claim(request("a", 2)).await else { panic!("claimed") };
    assert!(running.await.unwrap().unwrap_err().is_cancelled());
    sleep(SECOND).await;
    let State::Claimed(held) = store.state("a") else { panic!("{:?}", store.state("a")) };
    assert_eq!(held.owner, other.owner, "the release of the old owner changed nothing");
    process.assert_empty();
}

/// A process that was stopped finds all of its timers due: the handler's is no reason to go on.
#[tokio::test(start_paused = true)]
async fn fm37_a_process_that_stood_still_for_longer_than_its_lease_does_not_go_on_with_the_handler() {
    let (store, effects) = (Spy::new(), Arc::new(AtomicUsize::new(0)));
    let process = process(&store, 1, {
        let effects = effects.clone();
        move |_| {
            let effects = effects.clone();
            Box::pin(async move {
                sleep(SECOND).await;
                effects.fetch_add(1, SeqCst);
                Ok(())
            })
        }
    });
    let running = process.spawn(message("a"));
    sleep(SECOND / 2).await;
    assert!(matches!(store.state("a"), State::Claimed(_)));
    tokio::time::advance(2 * LEASE).await;
    assert!(running.await.unwrap().unwrap_err().is_cancelled());
    assert_eq!(effects.load(SeqCst), 0);
    sleep(SECOND).await;
    process.assert_empty();
}

/// What waited for a permit longer than its claim held is another one's to run.
#[tokio::test(start_paused = true)]
async fn fm37_a_handler_does_not_start_when_its_claim_ran_out_before() {
    let (store, started) = (Spy::new(), Arc::new(Mutex::new(Vec::new())));
    let inner = ConcurrencyLimitLayer::new(1).layer(service_fn({
        let started = started.clone();
        move |message: Message| {
            started.lock().unwrap().push(message.id().unwrap().clone());
            slow(300)
        }
    }));
    let process = around(&store, 1, inner);
    // Claimed at one instant, so that the claim of the second ends when the first one gives its permit up.
    let first = process.spawn(message("first"));
    let second = process.spawn(message("second"));
    sleep(SECOND).await;
    assert!(matches!(store.state("second"), State::Claimed(_)));
    store.memory.set_down(true);
    assert!(first.await.unwrap().unwrap_err().is_cancelled());
    assert!(second.await.unwrap().unwrap_err().is_cancelled());
    assert_eq!(*started.lock().unwrap(), ["first"]);
    store.memory.set_down(false);
    sleep(SECOND).await;
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm08_complete_is_finished_after_an_outage_and_the_handler_runs_once() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let (calls, store) = (calls.clone(), store.clone());
        move |_| {
            calls.add();
            store.memory.set_down(true);
            ok()
        }
    });
    let running = process.spawn(message("a"));
    sleep(600 * SECOND).await;
    assert!(!running.is_finished(), "not acked before it is recorded");
    store.memory.set_down(false);
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Processed);
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Duplicate);
    assert_eq!(calls.get(), 1);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm35_complete_is_finished_whatever_is_dropped() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let (calls, store) = (calls.clone(), store.clone());
        move |_| {
            calls.add();
            store.memory.set_down(true);
            ok()
        }
    });
    assert!(tokio::time::timeout(SECOND, process.call(message("a"))).await.is_err(), "dropped from outside");
    // It comes again while the store is still away: it waits for what is on its way.
    let again = process.spawn(message("a"));
    sleep(10 * LEASE).await;
    assert!(!again.is_finished());
    store.memory.set_down(false);
    assert_eq!(again.await.unwrap().unwrap(), Outcome::Duplicate);
    assert_eq!(calls.get(), 1);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm08_a_store_that_gives_up_for_good_does_not_make_the_handler_run_again_here() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            ok()
        }
    });
    store.memory.fail_resolves(1);
    assert_eq!(process.call(message("a")).await.unwrap(), Outcome::Processed, "the effect has happened: ack");
    assert_eq!(calls.get(), 1);
    process.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn fm31_without_its_store_the_layer_is_not_ready_and_what_is_held_waits() {
    let (store, calls) = (Spy::new(), Count::default());
    let process = process(&store, 1, {
        let calls = calls.clone();
        move |_| {
            calls.add();
            ok()
        }
    });
    store.memory.set_down(true);
    let mut dedup = process.dedup.clone();
    assert!(dedup.ready().now_or_never().is_none());
    let held = process.spawn(message("a"));
    sleep(60 * SECOND).await;
    assert!(!held.is_finished() && calls.get() == 0);
    store.memory.set_down(false);
    assert!(dedup.ready().now_or_never().is_some());
    assert_eq!(held.await.unwrap().unwrap(), Outcome::Processed);
}

#[tokio::test(start_paused = true)]
async fn bypass_handles_without_protection_and_leaves_no_claim_behind() {
    let store = Spy::new();
    let layer = DedupLayer::new(store.clone(), "c").on_outage(OnOutage::Bypass).as_process(1, Gate::new());
    let mut dedup = layer.layer(service_fn(|_| ok()));
    store.memory.lose_replies(1);
    let handled = dedup.ready().await.unwrap().call(message("a")).await;
    assert_eq!(handled.unwrap(), Outcome::Processed);
    sleep(SECOND).await;
    assert!(matches!(store.state("a"), State::Released(_)), "{:?}", store.state("a"));
}

/// What goes on unprotected must leave nothing behind that grows with the outage, and hold up nobody.
#[tokio::test(start_paused = true)]
async fn bypass_asks_nothing_of_a_store_that_is_down_and_keeps_no_key_to_itself() {
    let (store, gate) = (Spy::new(), Gate::new());
    let layer = DedupLayer::new(store.clone(), "c").on_outage(OnOutage::Bypass).as_process(1, gate.clone());
    let dedup = layer.layer(service_fn(|_| ok()));
    store.memory.set_down(true);
    for _ in 0..3 {
        let handled = tokio::time::timeout(SECOND, dedup.clone().oneshot(message("a"))).await;
        assert_eq!(handled.expect("it waits for the one before").unwrap(), Outcome::Processed);
    }
    assert_eq!(gate.enter(true).now_or_never(), Some(Pass::Alone), "every place is back");
    gate.leave(Pass::Alone);
    assert_eq!(format!("{:?}", dedup.shared.registry), "Registry { claims: 0, .. }");
    store.memory.set_down(false);
    sleep(SECOND).await;
    assert_eq!(store.memory.stats(), Default::default(), "nothing was kept for the end of the outage");
    assert_eq!(dedup.oneshot(message("a")).await.unwrap(), Outcome::Processed);
}

/// What was claimed before the outage does not wait for its end either, and is recorded then.
#[tokio::test(start_paused = true)]
async fn bypass_does_not_wait_for_the_record_of_what_was_claimed_before() {
    let store = Spy::new();
    let layer = DedupLayer::new(store.clone(), "c").on_outage(OnOutage::Bypass).as_process(1, Gate::new());
    let dedup = layer.layer(service_fn({
        let store = store.clone();
        move |_| {
            store.memory.set_down(true);
            ok()
        }
    }));
    let handled = tokio::time::timeout(5 * SECOND, dedup.clone().oneshot(message("a"))).await;
    assert_eq!(handled.expect("it waits for the store").unwrap(), Outcome::Processed);
    sleep(60 * SECOND).await;
    store.memory.set_down(false);
    sleep(5 * SECOND).await;
    assert!(matches!(store.state("a"), State::Completed { .. }), "{:?}", store.state("a"));
    assert_eq!(dedup.oneshot(message("a")).await.unwrap(), Outcome::Duplicate);
}

/// The run must not end before a claim whose answer nobody waited for is on its way back.
#[tokio::test(start_paused = true)]
async fn fm25_a_flush_waits_for_a_claim_that_is_to_be_handed_back() {
    let store = Spy::new();
    let process = process(&store, 1, |_| ok());
    let run = crate::scope::Run::new();
    let scope = crate::scope::Scope::new(tokio_util::sync::CancellationToken::new(), run.clone());
    store.delay_all(SECOND);
    let call = process.call(message("a").with_scope(Arc::new(scope)));
    assert!(tokio::time::timeout(SECOND / 2, call).await.is_err(), "dropped while it asks");
    assert!(matches!(store.state("a"), State::Claimed(_)), "granted, but nobody has heard of it");
    assert!(run.flush_stores(10 * SECOND).await);
    assert!(matches!(store.state("a"), State::Released(_)), "{:?}", store.state("a"));
    process.assert_empty();
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn fm05_a_success_after_another_owner_has_completed_counts_as_an_overlap() {
    use crate::layers::metrics::tests::Kept;
    for completed in [false, true] {
        let (kept, store) = (Kept::default(), Spy::new());
        let stalled = metrics::with_local_recorder(&kept, || {
            process(&store, 1, {
                let store = store.clone();
                move |_| {
                    let memory = store.memory.clone();
                    Box::pin(async move {
                        // Its lease ends in one stall, in which another process goes as far as it gets.
                        memory.expire_claims();
                        let Ok(ClaimReply::Claimed(other)) = memory.claim(request("a", 2)).await else {
                            panic!("not taken over")
                        };
                        if completed {
                            memory.resolve(other, Resolution::Completed, 100 * LEASE).await.unwrap();
                        }
                        Ok(())
                    })
                }
            })
        });
        assert_eq!(stalled.call(message("a")).await.unwrap(), Outcome::Processed);
        assert_eq!(kept.read().get("consumer_overlap_total consumer=c"), Some(&1), "completed: {completed}");
        assert!(matches!(store.state("a"), State::Completed { .. }));
    }
}
