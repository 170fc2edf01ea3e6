//! Stopping in two steps.

use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};

use super::{scripted::Script, *};
use crate::{DedupLayer, dedup::Gate, memory::MemoryStore};

#[tokio::test(start_paused = true)]
async fn waiting_messages_come_back_at_once_and_executing_ones_have_the_drain() {
    for lanes in [None, Some(2)] {
        let broker = broker(1, 4).await;
        let stack = handle(|message| async move {
            match number(&message) {
                0 => sleep(8 * SECOND).await,
                1 => sleep(60 * SECOND).await,
                2 => {
                    let waited = message.wait_or_cancelled(std::future::pending::<()>()).await;
                    return waited.ok_or_else(|| Failure::cancelled("shutdown"));
                }
                _ => return Err(Failure::transient("in its backoff when the stop comes")),
            }
            Ok(())
        });
        let consumer = Consumer::new(source(&broker), stack).drain_timeout(10 * SECOND);
        let consumer = consumer.backoff(60 * SECOND, 60 * SECOND);
        let mut run = Run::start(match lanes {
            Some(lanes) => consumer.lanes(lanes),
            None => consumer,
        });
        sleep(SECOND).await;
        let asked = Instant::now();
        run.stop();
        sleep(SECOND).await;
        assert_eq!(run.health.status().held, 2, "the two that wait are back");
        assert!(!run.health.status().ready);
        let report = run.report().await;
        assert_eq!(asked.elapsed().as_secs(), 10);
        assert_eq!(report.in_flight_at_stop, 4);
        assert_eq!((report.processed, report.returned), (1, 3));
        assert_eq!(broker.committed("g", "t", 0), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_after_the_stop() {
    let broker = broker(1, 1).await;
    let log = Log::new();
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            async {
                sleep(5 * SECOND).await;
                Ok(())
            }
        }
    });
    let mut run = Run::start(Consumer::new(source(&broker), stack));
    sleep(SECOND).await;
    run.stop();
    publish(&broker, 1..5).await;
    assert_eq!(run.report().await.received, 1);
    assert_eq!(log.numbers(), [0]);
}

/// A message for which the stack is not ready is waiting, not executing: it goes back at once.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_permit_of_an_outermost_limit_comes_back_at_once() {
    let broker = broker(1, 3).await;
    let log = Log::new();
    let stack = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)).service(handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            async {
                sleep(4 * SECOND).await;
                Ok(())
            }
        }
    }));
    let mut run = Run::start(Consumer::new(source(&broker), stack));
    sleep(2 * SECOND).await;
    assert_eq!(run.health.status().executing, 1, "the others wait");
    run.stop();
    let report = run.report().await;
    assert_eq!(log.numbers(), [0], "nothing new starts in the drain");
    assert_eq!((report.processed, report.returned), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_store_that_is_down_comes_back_at_once() {
    let (broker, store) = (broker(1, 2).await, MemoryStore::new());
    let layer = DedupLayer::new(store.clone(), "c").as_process(1, Gate::new());
    let stack = ServiceBuilder::new().layer(layer).service(handle({
        let store = store.clone();
        move |_| {
            store.set_down(true);
            async { Err(Failure::transient("presented again while the store is down")) }
        }
    }));
    let mut run = Run::start(Consumer::new(source(&broker), stack));
    sleep(5 * SECOND).await;
    let asked = Instant::now();
    run.stop();
    until(|| run.health.status().held == 0).await;
    assert_eq!(asked.elapsed().as_secs(), 0);
    store.set_down(false);
    assert_eq!(run.report().await.returned, 2);
}

/// A drain without a bound is a wish, not a crash at the moment of the stop.
#[tokio::test(start_paused = true)]
async fn a_drain_without_a_bound_is_possible() {
    let broker = broker(1, 1).await;
    let stack = handle(|_| async {
        sleep(3600 * SECOND).await;
        Ok(())
    });
    let run = Run::start(Consumer::new(source(&broker), stack).drain_timeout(Duration::MAX));
    sleep(SECOND).await;
    assert_eq!(run.stopped().await.processed, 1);
}

/// A handler that blocks its thread cannot be dropped; the run ends all the same, and says that it is unsettled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_does_not_keep_the_run_from_ending() {
    for lanes in [None, Some(1)] {
        let script = Script::default();
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let started = Arc::new(AtomicUsize::new(0));
        let stack = handle({
            let (blocked, started) = (blocked.clone(), started.clone());
            move |_| {
                let (blocked, started) = (blocked.clone(), started.clone());
                async move {
                    started.fetch_add(1, SeqCst);
                    let _ = blocked.lock().unwrap().recv();
                    Ok(())
                }
            }
        });
        let consumer = Consumer::new(script.clone(), stack).drain_timeout(SECOND / 10).max_in_flight(2);
        let run = Run::start(match lanes {
            Some(lanes) => consumer.lanes(lanes),
            None => consumer,
        });
        (0..2).for_each(|seq| script.deliver(1, seq));
        while started.load(SeqCst) == 0 {
            assert!(!run.task.is_finished(), "it has ended before its first call");
            tokio::task::yield_now().await;
        }
        let report = run.stopped().await;
        assert_eq!((report.processed, report.returned), (0, report.received));
        assert_eq!(script.settled(), []);
        assert!(script.polls() < 1000, "it waits, and asks its source no {} times meanwhile", script.polls());
        drop(release);
    }
}

/// Inside the retries and the rate limit as well: nothing starts in the drain that was not running.
#[tokio::test(start_paused = true)]
async fn fm25_what_waits_for_a_permit_inside_comes_back_at_once() {
    async fn stopped(stack: impl Stack, log: &Log, broker: MemoryBroker) {
        let mut run = Run::start(Consumer::new(source(&broker), stack));
        sleep(2 * SECOND).await;
        assert_eq!(run.health.status().executing, 1, "the others wait");
        let asked = Instant::now();
        run.stop();
        until(|| run.health.status().held == 1).await;
        assert!(asked.elapsed() < SECOND);
        let report = run.report().await;
        assert_eq!(log.numbers(), [0], "nothing new starts in the drain");
        assert_eq!((report.processed, report.returned), (1, 2));
    }
    let handler = |log: &Log| {
        let log = log.clone();
        handle(move |message| {
            log.call(&message);
            async {
                sleep(4 * SECOND).await;
                Ok(())
            }
        })
    };
    let log = Log::new();
    let stack = ServiceBuilder::new()
        .layer(crate::RetryLayer::none())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(handler(&log));
    stopped(stack, &log, broker(1, 3).await).await;
    #[cfg(feature = "rate-limit")]
    {
        let log = Log::new();
        let stack = ServiceBuilder::new()
            .layer(crate::RateLimitLayer::per_second(100))
            .layer(ConcurrencyLimitLayer::new(1))
            .service(handler(&log));
        stopped(stack, &log, broker(1, 3).await).await;
    }
}

/// Orchestrators grant 30 s as a rule.
#[tokio::test(start_paused = true)]
async fn all_that_comes_after_the_drain_takes_ten_seconds_at_most() {
    let (script, store) = (Script::default(), MemoryStore::new());
    script.never_closes();
    let layer = DedupLayer::new(store.clone(), "c").as_process(1, Gate::new());
    let stack = ServiceBuilder::new().layer(layer).service(handle(|_| std::future::pending()));
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 1);
    sleep(SECOND).await;
    // The claim that goes back when the handler is dropped is kept for the end of the outage.
    store.set_down(true);
    let asked = Instant::now();
    run.stop();
    assert_eq!(run.report().await.returned, 1);
    assert_eq!(asked.elapsed().as_secs(), 20);
    assert!(script.is_closed(), "the source had its turn");
}
