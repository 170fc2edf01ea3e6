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
