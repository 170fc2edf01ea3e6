//! Handlers and stores that fail.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use consumer_core::{Failure, dedup::protocol::State};
use tokio::time::sleep;

use crate::world::*;

#[tokio::test(start_paused = true)]
async fn fm08_a_complete_that_fails_is_made_up_for_and_the_handler_runs_once() {
    let world = World::new(1);
    let store = world.store.clone();
    let handler = world.calling(move |_| {
        store.set_down(true);
        Box::pin(async { Ok(()) })
    });
    let process = world.process(Who::Ours, 1, handler);
    world.send("m").await;
    sleep(100 * SECOND).await;
    assert!(!world.done(), "not acked before it is recorded");
    world.store.set_down(false);
    assert!(comes(|| world.done()).await);
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!((report.processed, report.duplicates, world.effects.of("m")), (1, 1, 1));
}

/// The first three calls of a message fail, the next ones would succeed; it is sent twice.
async fn fails_three_times(who: Who) -> (Vec<u32>, World) {
    let world = World::new(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = world.calling(move |_| {
        let failing = calls.fetch_add(1, SeqCst) < 2;
        Box::pin(async move { if failing { Err(Failure::transient("down")) } else { Ok(()) } })
    });
    let process = world.process(who, 1, handler);
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    (world.effects.attempts("m"), world)
}

#[tokio::test(start_paused = true)]
async fn fm24_an_error_is_never_recorded_as_completed() {
    let (attempts, world) = fails_three_times(Who::Ours).await;
    assert_eq!(attempts, [1, 2, 3]);
    assert!(matches!(world.state("m"), State::Completed { .. }));
    let epochs = world.effects.epochs("m");
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]), "one claim covers all attempts: {epochs:?}");
}

/// The same id with another payload.
async fn two_payloads(who: Who) -> World {
    let world = World::new(1);
    let process = world.process(who, 1, world.handler(1));
    world.send_as("m", "{\"total\":1}", None).await;
    assert!(comes(|| world.done()).await);
    world.send_as("m", "{\"total\":2}", None).await;
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    world
}

#[tokio::test(start_paused = true)]
async fn fm17_another_payload_under_a_known_id_is_set_aside_as_a_conflict() {
    let world = two_payloads(Who::Ours).await;
    let dead = world.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].headers().get_str("dead-letter-reason"), Some("conflict"));
    assert_eq!(dead[0].headers().get_str("dead-letter-attempts"), Some("0"));
    assert_eq!(world.effects.of("m"), 1);
    for who in [CHECK, MARK] {
        assert!(two_payloads(who).await.dead().is_empty(), "{who:?} swallows it");
    }
}

#[tokio::test(start_paused = true)]
async fn fm31_while_the_store_is_down_nothing_is_processed_or_acked_and_it_resumes_by_itself() {
    let world = World::new(1);
    let process = world.process(Who::Ours, 1, world.handler(1));
    sleep(SECOND).await;
    world.store.set_down(true);
    for n in 0..20 {
        world.send(&n.to_string()).await;
    }
    sleep(60 * SECOND).await;
    assert!(world.effects.ids().is_empty());
    assert_eq!(world.broker.committed("g", "t", 0), None);
    let status = process.health.status();
    assert!(status.live && !status.ready, "{status:?}");
    world.store.set_down(false);
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!((report.processed, report.received), (20, 20));
    assert_eq!(world.effects.ids().len(), 20);
}

/// A layer outside gives up on a message whose handler has succeeded while the store was away.
#[tokio::test(start_paused = true)]
async fn fm35_a_success_is_recorded_though_the_future_of_the_stack_was_dropped() {
    let world = World::new(1);
    let store = world.store.clone();
    let handler = world.calling(move |_| {
        store.set_down(true);
        Box::pin(async { Ok(()) })
    });
    let process = world.process(Who::Ours, 1, handler);
    world.send("m").await;
    sleep(SECOND).await;
    // The partition is lost at once: what runs is dropped, and the message comes again.
    process.lose_connection();
    sleep(10 * SECOND).await;
    world.store.set_down(false);
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!(world.effects.of("m"), 1);
    assert_eq!((report.duplicates, report.returned), (1, 1));
}

/// Nothing is claimed for messages that wait in a queue of this process.
#[tokio::test(start_paused = true)]
async fn fm19_a_message_is_claimed_when_its_turn_has_come() {
    let world = World::new(1);
    for n in 0..10 {
        world.send(&n.to_string()).await;
    }
    let order = ordered(consumer_core::runtime::Ordering::Partition);
    let process = world.process_with(Who::Ours, 1, world.handler(60), order);
    sleep(5 * SECOND).await;
    assert_eq!(process.health.status().held, 10, "they are fetched");
    assert_eq!(world.store.stats().claims, 1);
    assert_eq!(world.state("1"), State::Absent);
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    assert_eq!(world.effects.ids().len(), 10);
}
