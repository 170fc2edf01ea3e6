//! Taking, presenting, accounting.

use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};

use super::{scripted::Script, *};

#[tokio::test(start_paused = true)]
async fn max_in_flight_bounds_what_is_held() {
    for lanes in [None, Some(2)] {
        let broker = broker(4, 50).await;
        let concurrency = Concurrency::default();
        let seen = concurrency.clone();
        let stack = handle(move |_| {
            let running = seen.enter();
            async move {
                sleep(SECOND).await;
                drop(running);
                Ok(())
            }
        });
        let mut consumer = Consumer::new(source(&broker).finite(), stack).max_in_flight(4);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        let report = Run::start(consumer).report().await;
        assert_eq!(report.processed, 50);
        assert_eq!(concurrency.most.load(SeqCst), 4, "with lanes: {lanes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_consumer_leaves_the_rest_at_the_broker() {
    let broker = broker(1, 10).await;
    let log = Log::new();
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            std::future::pending()
        }
    });
    let consumer = Consumer::new(source(&broker), stack).max_in_flight(3).drain_timeout(SECOND);
    let run = Run::start(consumer);
    sleep(60 * SECOND).await;
    assert_eq!(log.numbers(), [0, 1, 2]);
    assert_eq!(run.health.status().held, 3);
    let report = run.stopped().await;
    assert_eq!((report.received, report.returned, report.in_flight_at_stop), (3, 3, 3));
    assert_eq!(broker.committed("g", "t", 0), None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_leaves_the_stack_is_presented_again_with_backoff_and_its_offset_is_held() {
    for lanes in [None, Some(1)] {
        let broker = broker(1, 3).await;
        let log = Log::new();
        let stack = handle({
            let log = log.clone();
            move |message| {
                log.call(&message);
                let failing = number(&message) == 0 && log.times_of(0).len() < 5;
                async move { if failing { Err(Failure::transient("down")) } else { Ok(()) } }
            }
        });
        let mut consumer = Consumer::new(source(&broker).finite(), stack).backoff(SECOND, 4 * SECOND);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        let run = Run::start(consumer);
        until(|| log.len() == 6).await;
        assert_eq!(broker.committed("g", "t", 0), None, "1 and 2 are done, 0 is not");
        let report = run.report().await;
        assert_eq!((report.received, report.processed), (3, 3));
        assert_eq!(log.times_of(0), [0, 1, 3, 7, 11]);
        assert_eq!(broker.committed("g", "t", 0), Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_no_layer_catches_is_presented_again_and_frees_its_place() {
    for lanes in [None, Some(1)] {
        let broker = broker(1, 4).await;
        let log = Log::new();
        let stack = handle({
            let log = log.clone();
            move |message| {
                log.call(&message);
                let panics = number(&message) == 1 && log.times_of(1).len() < 4;
                async move {
                    assert!(!panics, "the panic of this test");
                    Ok(())
                }
            }
        });
        let mut consumer = Consumer::new(source(&broker).finite(), stack).max_in_flight(1);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        let report = Run::start(consumer).report().await;
        assert_eq!((report.received, report.processed), (4, 4));
        assert_eq!(log.times_of(1), [0, 1, 3, 7], "with lanes: {lanes:?}");
        assert_eq!(broker.committed("g", "t", 0), Some(4));
    }
}

/// A broker may hand over under the same tag what it has got back; nothing is remembered of a delivery that is settled.
#[tokio::test(start_paused = true)]
async fn what_is_settled_takes_the_count_of_its_panics_along() {
    let (script, log) = (Script::default(), Log::new());
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            let panics = log.len() % 3 != 0;
            async move {
                assert!(!panics, "the panic of this test");
                Ok(())
            }
        }
    });
    let run = Run::start(Consumer::new(script.clone(), stack));
    for _ in 0..2 {
        script.deliver(1, 7);
        sleep(10 * SECOND).await;
    }
    assert_eq!(log.times_of(7), [0, 1, 3, 10, 11, 13]);
    assert_eq!(run.stopped().await.processed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_discarded_only_where_that_was_asked_for_and_after_as_many_failures() {
    let broker = broker(1, 2).await;
    let log = Log::new();
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            let failing = number(&message) == 0;
            async move { if failing { Err(Failure::transient("down")) } else { Ok(()) } }
        }
    });
    let consumer = Consumer::new(source(&broker).finite(), stack).discard_after(3);
    let report = Run::start(consumer).report().await;
    assert_eq!((report.processed, report.discarded), (1, 1));
    assert_eq!(log.times_of(0).len(), 3);
}

/// What was handed back is no failure: it must not use up what `discard_after` grants.
#[tokio::test(start_paused = true)]
async fn fm39_a_message_that_was_handed_back_is_not_discarded_for_it() {
    let broker = broker(1, 1).await;
    let log = Log::new();
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            let call = log.len();
            async move {
                match call {
                    1..=4 => Err(Failure::cancelled("the claim ran out")),
                    5 => Err(Failure::transient("down")),
                    _ => Ok(()),
                }
            }
        }
    });
    let consumer = Consumer::new(source(&broker).finite(), stack).discard_after(2);
    let report = Run::start(consumer).report().await;
    assert_eq!((report.processed, report.discarded), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_outermost_concurrency_limit_loses_no_permit_to_the_runtimes_readiness() {
    for lanes in [None, Some(2)] {
        let broker = broker(2, 7).await;
        let concurrency = Concurrency::default();
        let log = Log::new();
        let stack = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)).service(handle({
            let (log, seen) = (log.clone(), concurrency.clone());
            move |message| {
                let running = seen.enter();
                log.call(&message);
                // Every third call fails, so that presentations compete with the runtime for the permit.
                let failing = log.len() % 3 == 0;
                async move {
                    sleep(SECOND).await;
                    drop(running);
                    if failing { Err(Failure::transient("down")) } else { Ok(()) }
                }
            }
        }));
        let mut consumer = Consumer::new(source(&broker), stack).max_in_flight(5);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        let run = Run::start(consumer);
        until(|| broker.lag("g", "t") == 0).await;
        // Nothing is in flight; the permit has to be there for what comes next.
        sleep(60 * SECOND).await;
        publish(&broker, 7..12).await;
        until(|| broker.lag("g", "t") == 0).await;
        assert_eq!(concurrency.most.load(SeqCst), 1);
        assert_eq!(run.stopped().await.processed, 12);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_source_waits_for_what_is_in_flight() {
    let broker = broker(2, 6).await;
    let stack = handle(|_| async {
        sleep(30 * SECOND).await;
        Ok(())
    });
    let report = Run::start(Consumer::new(source(&broker).finite(), stack)).report().await;
    assert_eq!((report.processed, report.returned), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn idle_time_starts_anew_with_every_delivery_and_never_cuts_off_what_is_in_flight() {
    let broker = broker(1, 1).await;
    let stack = handle(|_| async {
        sleep(25 * SECOND).await;
        Ok(())
    });
    let start = Instant::now();
    let run = Run::start(Consumer::new(source(&broker), stack).stop_when_idle(10 * SECOND));
    sleep(30 * SECOND).await;
    publish(&broker, 1..2).await;
    let report = run.report().await;
    assert_eq!((report.processed, report.returned), (2, 0));
    // 30 s until the second one comes, 25 s for it, 10 s without anything.
    assert_eq!(start.elapsed().as_secs(), 65);
}

#[tokio::test(start_paused = true)]
async fn idle_time_stands_still_while_the_source_is_away() {
    let broker = broker(1, 0).await;
    let log = Log::new();
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            async { Ok(()) }
        }
    });
    let run = Run::start(Consumer::new(source(&broker), stack).stop_when_idle(10 * SECOND));
    sleep(SECOND).await;
    broker.set_down(true);
    sleep(100 * SECOND).await;
    broker.set_down(false);
    sleep(SECOND).await;
    publish(&broker, 0..1).await;
    assert_eq!(run.report().await.processed, 1);
}
