//! Brokers that bound how long a delivery may be held, and sources that cannot give what a run demands.

use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};

use super::{super::Ordering as Order, scripted::Script, *};
use crate::{DedupLayer, DelayedRetryLayer, RetryLayer, Settlement, Tag, memory::MemoryStore};

const TAG: Tag = Tag { scope: 1, seq: 7 };

#[tokio::test(start_paused = true)]
async fn fm36_a_backoff_longer_than_the_hold_is_cut_short_and_what_failed_is_counted_once() {
    let script = Script::default();
    script.hold_for(60 * SECOND);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let stack = ServiceBuilder::new()
        .layer(DedupLayer::new(MemoryStore::new(), "c"))
        .layer(RetryLayer::fixed(3600 * SECOND).max_attempts(9))
        .service(handle({
            let attempts = attempts.clone();
            move |message: Message| {
                attempts.lock().unwrap().push(message.attempt());
                async { Err(Failure::transient("later")) }
            }
        }));
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    for round in 1..=3 {
        script.deliver(1, 7);
        sleep(59 * SECOND).await;
        assert_eq!((script.settled().len(), attempts.lock().unwrap().len()), (round - 1, round), "it waits");
        sleep(2 * SECOND).await;
        assert_eq!(script.settled().last(), Some(&(TAG, Settlement::Nack)));
    }
    assert_eq!(*attempts.lock().unwrap(), [1, 2, 3]);
    run.stop();
    assert_eq!(run.report().await.returned, 3);
}

#[tokio::test(start_paused = true)]
async fn fm36_an_executing_handler_is_left_alone_however_long_it_takes() {
    let script = Script::default();
    script.hold_for(60 * SECOND);
    let stack = handle(|_| async {
        sleep(600 * SECOND).await;
        Ok(())
    });
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 7);
    sleep(601 * SECOND).await;
    assert_eq!(script.settled(), [(TAG, Settlement::Ack)]);
    run.stop();
    assert_eq!(run.report().await.processed, 1);
}

#[tokio::test(start_paused = true)]
async fn fm36_what_waits_for_a_permit_is_handed_back_in_time() {
    let script = Script::default();
    script.hold_for(60 * SECOND);
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::fixed(SECOND))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(handle(|_| async {
            sleep(600 * SECOND).await;
            Ok(())
        }));
    let mut run = Run::start(Consumer::new(script.clone(), stack));
    script.deliver(1, 7);
    script.deliver(1, 8);
    sleep(61 * SECOND).await;
    assert_eq!(script.settled(), [(Tag { scope: 1, seq: 8 }, Settlement::Nack)]);
    sleep(600 * SECOND).await;
    assert_eq!(script.settled().last(), Some(&(TAG, Settlement::Ack)));
    run.stop();
    run.report().await;
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_the_source_cannot_meet_ends_the_run_before_it_begins() {
    let script = Script::default();
    script.refuses();
    script.deliver(1, 7);
    let consumer = Consumer::new(script.clone(), handle(|_| async { Ok(()) }));
    let error = consumer.max_in_flight(3).ordering(Order::Key).run().await.unwrap_err();
    let text = crate::failure::chain(&error);
    assert!(text.contains("max_in_flight: 3") && text.contains("Key"), "{text}");
    assert_eq!(error.report().received, 0);
    assert!(script.is_closed());
}

/// A consumer that joined its group first would take partitions from others for nothing.
#[tokio::test(start_paused = true)]
async fn a_run_that_a_layer_refuses_ends_before_the_source_is_polled() {
    let script = Script::default();
    let layer = DelayedRetryLayer::new(MemoryBroker::new().publisher()).delays([SECOND]);
    let stack = ServiceBuilder::new().layer(layer).service(handle(|_| async { Ok(()) }));
    let error = Consumer::new(script.clone(), stack).ordering(Order::Partition).run().await.unwrap_err();
    assert_eq!((error.report().received, script.polls()), (0, 0));
    assert!(script.is_closed());
}
