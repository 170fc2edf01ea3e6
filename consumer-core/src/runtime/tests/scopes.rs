//! Assignments that end.

use std::pin::pin;

use tower::ServiceBuilder;

use super::{
    scripted::{Script, Step},
    *,
};
use crate::{DedupLayer, Event, Settlement, Tag, memory::MemoryStore};

fn closing(scope: u64, within: Duration) -> Step {
    Step::Event(Event::Closing { scope, within })
}

#[tokio::test(start_paused = true)]
async fn what_runs_in_a_closing_scope_may_finish_in_time_and_is_dropped_after_it() {
    for lanes in [None, Some(2)] {
        let script = Script::default();
        let stack = handle(|message| async move {
            sleep(number(&message) as u32 * SECOND).await;
            Ok(())
        });
        let mut consumer = Consumer::new(script.clone(), stack);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        let run = Run::start(consumer);
        script.deliver(1, 5);
        script.deliver(1, 50);
        script.deliver(2, 30);
        sleep(SECOND).await;
        script.then(closing(1, 10 * SECOND));
        sleep(9 * SECOND).await;
        assert_eq!(script.settled(), [(Tag { scope: 1, seq: 5 }, Settlement::Ack)]);
        assert!(script.released().is_empty());
        sleep(2 * SECOND).await;
        assert_eq!(script.settled()[1], (Tag { scope: 1, seq: 50 }, Settlement::Nack));
        assert_eq!(script.released(), [1]);
        sleep(30 * SECOND).await;
        assert_eq!(
            script.settled()[2],
            (Tag { scope: 2, seq: 30 }, Settlement::Ack),
            "another scope goes on"
        );
        let report = run.stopped().await;
        assert_eq!((report.processed, report.returned), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn fm15_what_comes_again_over_a_new_connection_joins_the_call_that_runs() {
    let script = Script::default();
    let log = Log::new();
    let stack = ServiceBuilder::new().layer(DedupLayer::new(MemoryStore::new(), "c")).service(handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            async {
                sleep(20 * SECOND).await;
                Ok(())
            }
        }
    }));
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    for scope in 1..4 {
        script.deliver(scope, 7);
        sleep(SECOND).await;
        script.then(closing(scope, Duration::MAX));
    }
    script.deliver(4, 7);
    sleep(30 * SECOND).await;
    assert_eq!(log.numbers(), [7], "one call, over whatever connection it comes");
    let tag = |scope| Tag { scope, seq: 7 };
    let settled = script.settled();
    // What waited over a connection that is gone is handed back; the call that ran, and what joined it last, are done.
    assert_eq!(settled[..2], [(tag(2), Settlement::Nack), (tag(3), Settlement::Nack)]);
    assert_eq!(settled[2..], [(tag(1), Settlement::Ack), (tag(4), Settlement::Ack)]);
    assert_eq!(script.released(), [2, 3, 1]);
    run.stop();
    let report = run.report().await;
    assert_eq!((report.processed, report.duplicates, report.returned), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_scope_that_is_gone_is_dropped_at_once() {
    let script = Script::default();
    let concurrency = Concurrency::default();
    let stack = handle({
        let seen = concurrency.clone();
        move |_| {
            let running = seen.enter();
            async move {
                let _running = running;
                std::future::pending().await
            }
        }
    });
    let run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 1);
    sleep(SECOND).await;
    assert_eq!(concurrency.now.load(SeqCst), 1);
    script.then(closing(1, Duration::ZERO));
    sleep(SECOND / 10).await;
    assert_eq!(concurrency.now.load(SeqCst), 0, "the handler is dropped");
    assert_eq!(script.released(), [1]);
    assert_eq!(run.stopped().await.returned, 1);
}

/// Between two looks at the clock that nothing else asks for.
#[tokio::test(start_paused = true)]
async fn a_scope_is_dropped_when_its_time_is_up_and_not_at_the_next_tick() {
    let script = Script::default();
    let run = Run::start(Consumer::new(script.clone(), handle(|_| std::future::pending())));
    script.deliver(1, 1);
    sleep(SECOND * 21 / 10).await;
    script.then(closing(1, SECOND * 3 / 10));
    sleep(SECOND * 2 / 10).await;
    assert!(script.released().is_empty());
    sleep(SECOND * 2 / 10).await;
    assert_eq!(script.released(), [1]);
    assert_eq!(run.stopped().await.returned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_scope_of_which_nothing_is_held_is_released_at_once() {
    let script = Script::default();
    let run = Run::start(Consumer::new(script.clone(), handle(|_| async { Ok(()) })));
    script.deliver(1, 1);
    sleep(SECOND).await;
    script.then(closing(1, 10 * SECOND));
    script.then(closing(7, 10 * SECOND));
    sleep(SECOND / 10).await;
    assert_eq!(script.released(), [1, 7]);
    assert_eq!(run.stopped().await.processed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_revoke_is_seen_by_a_full_consumer() {
    let script = Script::default();
    let stack = handle(|message| async move {
        message.cancellation().cancelled().await;
        Err(Failure::cancelled("asked to"))
    });
    let run = Run::start(Consumer::new(script.clone(), stack).max_in_flight(1));
    script.deliver(1, 1);
    sleep(SECOND).await;
    script.then(closing(1, 10 * SECOND));
    sleep(SECOND / 10).await;
    assert_eq!(script.settled(), [(Tag { scope: 1, seq: 1 }, Settlement::Nack)]);
    assert_eq!(run.stopped().await.returned, 1);
}

/// A busy partition must not keep the runtime from ending another one in time: its new owner would run the same
/// messages beside us.
#[tokio::test(start_paused = true)]
async fn a_busy_source_does_not_put_off_the_end_of_a_scope() {
    let script = Script::default();
    let concurrency = Concurrency::default();
    let stack = handle({
        let seen = concurrency.clone();
        move |message| {
            let running = (number(&message) == 0).then(|| seen.enter());
            async move {
                if running.is_some() {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        }
    });
    let run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 0);
    sleep(SECOND).await;
    assert_eq!(concurrency.now.load(SeqCst), 1);
    script.then(closing(1, Duration::ZERO));
    script.endless(2);
    // The clock stands still as long as the source is busy, so count turns instead.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(script.released(), [1]);
    assert_eq!(concurrency.now.load(SeqCst), 0);
    let mut stopped = pin!(run.stopped());
    assert_eq!(stopped.as_mut().await.returned, 1);
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_source_ends_the_run_after_a_drain_and_brings_the_report() {
    let script = Script::default();
    let stack = handle(|_| async {
        sleep(5 * SECOND).await;
        Ok(())
    });
    let run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 1);
    sleep(SECOND).await;
    script.then(Step::Error("the topic is gone"));
    let error = run.task.await.unwrap().unwrap_err();
    balanced(error.report());
    assert_eq!(error.report().processed, 1);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the topic is gone");
    assert!(script.is_closed());
}

/// A stop that was asked for does not make a lost source a clean end.
#[tokio::test(start_paused = true)]
async fn the_error_of_a_source_during_the_drain_is_not_lost() {
    let script = Script::default();
    let stack = handle(|_| async {
        sleep(5 * SECOND).await;
        Ok(())
    });
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 1);
    sleep(SECOND).await;
    run.stop();
    sleep(SECOND).await;
    script.then(Step::Error("the topic is gone"));
    let error = run.task.await.unwrap().unwrap_err();
    assert_eq!(error.report().processed, 1);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the topic is gone");
}

/// Runs for ever, and panics when it is dropped.
struct Booby;

impl Future for Booby {
    type Output = Result<(), Failure>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Pending
    }
}

impl Drop for Booby {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_when_it_is_dropped_does_not_take_its_lane_along() {
    let script = Script::default();
    let stack = handle(|message| {
        let booby = (number(&message) == 0).then(|| Booby);
        async move {
            match booby {
                Some(booby) => booby.await,
                None => Ok(()),
            }
        }
    });
    let run = Run::start(Consumer::new(script.clone(), stack).lanes(1));
    script.deliver(1, 0);
    sleep(SECOND).await;
    script.then(closing(1, Duration::ZERO));
    sleep(SECOND).await;
    assert_eq!(script.released(), [1]);
    script.deliver(2, 7);
    sleep(SECOND).await;
    assert_eq!(script.settled()[1], (Tag { scope: 2, seq: 7 }, Settlement::Ack), "the lane goes on");
    assert_eq!(run.stopped().await.returned, 1);
}
