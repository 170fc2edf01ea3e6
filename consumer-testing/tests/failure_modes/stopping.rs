//! Shutdown is no failure.

use consumer_core::dedup::protocol::State;
use tokio::time::sleep;

use crate::world::*;

/// The drain cuts a handler off, and the next process starts at once. What the store knew in between.
async fn cut_off(who: Who) -> (World, State) {
    let world = World::new(1);
    world.send("m").await;
    let process = world.process(who, 1, world.handler(60));
    sleep(5 * SECOND).await;
    let report = process.stopped().await;
    assert_eq!((report.returned, report.in_flight_at_stop), (1, 1));
    assert_eq!(world.broker.committed("g", "t", 0), None);
    let between = world.state("m");
    let next = world.process(who, 2, world.handler(1));
    assert!(comes(|| world.done()).await);
    next.stopped().await;
    assert!(world.dead().is_empty());
    (world, between)
}

#[tokio::test(start_paused = true)]
async fn fm25_a_handler_that_the_shutdown_cuts_off_is_neither_a_success_nor_a_failure() {
    let (world, between) = cut_off(Who::Ours).await;
    let State::Released(numbers) = between else { panic!("{between:?}") };
    assert_eq!((numbers.attempts, numbers.crashes, numbers.suspect), (0, 0, false));
    assert_eq!(world.effects.attempts("m"), [1]);
    let (world, _) = cut_off(MARK).await;
    assert_eq!(world.effects.of("m"), 0, "the mark of the naive consumer still holds: acked and lost");
}

#[tokio::test(start_paused = true)]
async fn fm39_many_shutdowns_and_rebalances_count_nothing() {
    let world = World::new(1);
    world.send("m").await;
    for nonce in 0..12 {
        let process = world.process(Who::Ours, nonce, world.handler(60));
        sleep(5 * SECOND).await;
        if nonce % 2 == 0 {
            process.lose_connection();
            sleep(5 * SECOND).await;
        }
        process.stopped().await;
    }
    assert!(world.dead().is_empty());
    let last = world.process(Who::Ours, 99, world.handler(1));
    assert!(comes(|| world.done()).await);
    assert_eq!(last.stopped().await.processed, 1);
    assert_eq!(world.effects.attempts("m"), [1]);
}
