//! What probes are told.

use tower::ServiceBuilder;

use super::*;
use crate::{DeadLetterLayer, DedupLayer, dedup::Gate, memory::MemoryStore};

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_source_and_the_stack() {
    let (broker, store) = (broker(1, 0).await, MemoryStore::new());
    let layer = DedupLayer::new(store.clone(), "c").as_process(1, Gate::new());
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(layer)
        .service(handle(|_| async { Ok(()) }));
    let consumer = Consumer::new(source(&broker), stack);
    assert_eq!(consumer.health().status().reason.as_deref(), Some("the source is not connected"));
    let run = Run::start(consumer);
    sleep(2 * SECOND).await;
    assert!(run.health.status().ready && run.health.status().live);
    store.set_down(true);
    publish(&broker, 0..1).await;
    sleep(2 * SECOND).await;
    let status = run.health.status();
    assert!(
        status.live && !status.ready && status.reason.as_ref().unwrap().starts_with("paused"),
        "{status:?}"
    );
    store.set_down(false);
    until(|| run.health.status().ready).await;
    broker.set_down(true);
    sleep(2 * SECOND).await;
    assert!(!run.health.status().ready);
    broker.set_down(false);
    until(|| run.health.status().ready).await;
    let health = run.health.clone();
    run.stopped().await;
    assert!(!health.status().ready && !health.status().live);
}

#[tokio::test(start_paused = true)]
async fn a_wedged_handler_shows_and_a_slow_one_among_others_does_not() {
    let broker = broker(1, 1).await;
    let stack = handle(|message| async move {
        if number(&message) == 0 {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    let run = Run::start(Consumer::new(source(&broker), stack).wedged_after(60 * SECOND));
    for n in 1..10 {
        sleep(30 * SECOND).await;
        assert!(run.health.status().live, "others are finished");
        publish(&broker, n..n + 1).await;
    }
    sleep(61 * SECOND).await;
    let status = run.health.status();
    assert!(!status.live && status.executing == 1, "{status:?}");
}

/// An orchestrator that kills a process for an outage of its store makes things worse.
#[tokio::test(start_paused = true)]
async fn fm31_an_outage_of_the_store_does_not_count_as_wedged() {
    let (broker, store) = (broker(1, 3).await, MemoryStore::new());
    let layer = DedupLayer::new(store.clone(), "c").as_process(1, Gate::new());
    let stack = ServiceBuilder::new().layer(layer).service(handle({
        let store = store.clone();
        move |message| {
            store.set_down(true);
            let failing = number(&message) == 0;
            async move { if failing { Err(Failure::transient("presented again")) } else { Ok(()) } }
        }
    }));
    let consumer = Consumer::new(source(&broker), stack).wedged_after(60 * SECOND);
    let run = Run::start(consumer);
    sleep(600 * SECOND).await;
    let status = run.health.status();
    assert!(status.live, "{status:?}");
    assert_eq!((status.held, status.executing), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_or_is_dropped_has_ended() {
    for panics in [false, true] {
        let broker = broker(1, 0).await;
        let signal = async move {
            sleep(5 * SECOND).await;
            assert!(!panics, "the signal is broken");
            std::future::pending().await
        };
        let consumer = Consumer::new(source(&broker), handle(|_| async { Ok(()) })).shutdown(signal);
        let health = consumer.health();
        let run = tokio::spawn(consumer.run());
        sleep(2 * SECOND).await;
        assert!(health.status().live && health.status().ready);
        sleep(5 * SECOND).await;
        run.abort();
        assert_eq!(run.await.unwrap_err().is_panic(), panics);
        assert!(!health.status().live && !health.status().ready, "panics: {panics}");
    }
}
