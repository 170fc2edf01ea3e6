//! Handlers and stores that fail.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use consumer_core::{Failure, Report, dedup::protocol::State};
use consumer_testing::naive::Order;
use tokio::time::sleep;

use crate::world::*;

/// A handler that succeeds, and in whose first call the store goes away.
fn in_an_outage(world: &World) -> Handler {
    let (down, first) = (world.clone(), AtomicBool::new(true));
    world.calling(move |_| {
        if first.swap(false, SeqCst) {
            down.set_store_down(true);
        }
        Box::pin(async { Ok(()) })
    })
}

/// The store is away when a success is to be recorded, and comes back after 100 s; then a duplicate comes.
async fn recording_fails(who: Who) -> (World, Report) {
    let world = World::new(1);
    let process = world.process(who, 1, in_an_outage(&world));
    world.send("m").await;
    sleep(100 * SECOND).await;
    assert!(!world.done(), "not acked before it is recorded");
    world.set_store_down(false);
    assert!(comes(|| world.done()).await);
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    (world, report)
}

#[tokio::test(start_paused = true)]
async fn fm08_a_complete_that_fails_is_made_up_for_and_the_handler_runs_once() {
    let (world, report) = recording_fails(Who::Ours).await;
    assert_eq!((report.processed, report.duplicates, world.effects.of("m")), (1, 1, 1));
    let (world, report) = recording_fails(CHECK).await;
    assert_eq!((report.processed, report.duplicates), (1, 1));
    assert!(world.effects.of("m") > 2, "the naive consumer runs the handler again each time");
}

/// The first two calls of a message fail, the next ones would succeed.
async fn fails_twice(who: Who) -> (Vec<u32>, World) {
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
    let (attempts, world) = fails_twice(Who::Ours).await;
    assert_eq!(attempts, [1, 2, 3]);
    assert!(matches!(world.state("m"), State::Completed { .. }));
    let epochs = world.effects.epochs("m");
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]), "one claim covers all attempts: {epochs:?}");
    let (attempts, _) = fails_twice(Who::Nacking(Order::MarkOnly)).await;
    assert_eq!(attempts, [1], "the mark of the failed call suppresses the retry: acked and lost");
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

/// The store is away for a minute, in which 20 messages come. How many effects there were before it came back, and
/// in all.
async fn store_is_away(who: Who) -> (usize, usize) {
    let world = World::new(1);
    let process = world.process(who, 1, world.handler(1));
    sleep(SECOND).await;
    world.set_store_down(true);
    for n in 0..20 {
        world.send(&n.to_string()).await;
    }
    sleep(60 * SECOND).await;
    let meanwhile = world.effects.ids().len();
    assert_eq!(world.broker.committed("g", "t", 0), None);
    let status = process.health.status();
    assert_eq!((status.live, status.ready), (true, who != Who::Ours), "{status:?}");
    world.set_store_down(false);
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!((report.processed, report.received), (20, 20));
    (meanwhile, world.effects.ids().len())
}

#[tokio::test(start_paused = true)]
async fn fm31_while_the_store_is_down_nothing_is_processed_or_acked_and_it_resumes_by_itself() {
    assert_eq!(store_is_away(Who::Ours).await, (0, 20));
    let (meanwhile, _) = store_is_away(CHECK).await;
    assert!(meanwhile > 40, "the naive consumer handles them unprotected, each again and again: {meanwhile}");
}

/// What runs is dropped after its handler has succeeded, while the store is away, and the message comes again.
async fn dropped_after_success(who: Who) -> (World, Report) {
    let world = World::new(1);
    let process = world.process(who, 1, in_an_outage(&world));
    world.send("m").await;
    sleep(SECOND).await;
    // The partition is lost at once.
    process.lose_connection();
    sleep(SECOND).await;
    world.set_store_down(false);
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!(report.returned, 1);
    (world, report)
}

#[tokio::test(start_paused = true)]
async fn fm35_a_success_is_recorded_though_the_future_of_the_stack_was_dropped() {
    let (world, report) = dropped_after_success(Who::Ours).await;
    assert_eq!((world.effects.of("m"), report.duplicates), (1, 1));
    let (world, report) = dropped_after_success(CHECK).await;
    assert_eq!((world.effects.of("m"), report.duplicates), (2, 0), "the naive consumer forgets the success");
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
