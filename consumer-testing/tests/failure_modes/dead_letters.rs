//! Messages that are set aside.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use consumer_core::{
    Failure, Outgoing, Publisher, Report, dedup::protocol::State, memory::PublishFault, message::wire,
};
use consumer_testing::naive::Order;
use tokio::time::sleep;

use crate::world::*;

fn undecodable(world: &World) -> Handler {
    world.calling(|message| {
        Box::pin(async move {
            match std::str::from_utf8(message.payload()).is_ok_and(|text| text.starts_with('{')) {
                true => Ok(()),
                false => Err(Failure::undecodable("expected value at line 1 column 1")),
            }
        })
    })
}

/// A message that cannot be decoded and five that can; what has happened after so many seconds.
async fn meets_poison(who: Who, seconds: u32) -> World {
    let world = World::new(1);
    world.send_as("poison", "not json", None).await;
    for n in 0..5 {
        world.send(&n.to_string()).await;
    }
    let process = world.process(who, 1, undecodable(&world));
    sleep(seconds * SECOND).await;
    process.stopped().await;
    world
}

#[tokio::test(start_paused = true)]
async fn fm26_a_poison_message_is_set_aside_at_once_and_holds_nothing_up() {
    let world = meets_poison(Who::Ours, 1).await;
    assert!(world.done());
    assert_eq!((world.effects.of("poison"), world.effects.ids().len()), (1, 6), "one call each");
    let dead = world.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].headers().get_str("dead-letter-reason"), Some("undecodable"));
    assert_eq!(dead[0].headers().get_str("dead-letter-attempts"), Some("1"));

    let world = meets_poison(Who::Nacking(Order::CheckThenMark), 3_600).await;
    assert!(world.effects.of("poison") > 50, "the naive consumer calls it again and again");
    assert_eq!(world.broker.committed("g", "t", 0), None, "and the offset stands still behind it");
}

/// The dead-letter target is away for a minute.
async fn target_is_away(who: Who, fault: PublishFault) -> World {
    let world = World::new(1);
    world.send_as("poison", "not json", None).await;
    let process = world.process(who, 1, undecodable(&world));
    world.broker.fail_next_publishes(7, fault);
    sleep(5 * SECOND).await;
    if who == Who::Ours {
        assert!(!world.done(), "acked without a dead letter");
        let status = process.health.status();
        assert!(!status.ready && status.live, "{status:?}");
    }
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    world
}

#[tokio::test(start_paused = true)]
async fn fm27_a_message_whose_dead_letter_fails_is_not_acked_and_tried_again() {
    let world = target_is_away(Who::Ours, PublishFault::Unavailable).await;
    assert_eq!((world.dead().len(), world.effects.of("poison")), (1, 1), "only the publish is repeated");
    for who in [CHECK, MARK] {
        assert!(target_is_away(who, PublishFault::Unavailable).await.dead().is_empty(), "{who:?} loses it");
    }
}

#[tokio::test(start_paused = true)]
async fn fm20_a_dead_letter_that_no_target_takes_is_a_failure_and_not_an_ack() {
    let world = target_is_away(Who::Ours, PublishFault::Unroutable).await;
    assert_eq!(world.dead().len(), 1);
    assert!(target_is_away(CHECK, PublishFault::Unroutable).await.dead().is_empty());
}

/// Duplicates come, for either process, while the dead letter of the first one is on its way. How many were answered
/// as duplicates.
async fn duplicates_of_a_failure(who: Who) -> (World, u64) {
    let world = World::new(2);
    let handler = world.calling(|_| Box::pin(async { Err(Failure::permanent("no such order")) }));
    let (a, b) = (world.process(who, 1, handler.clone()), world.process(who, 2, handler.clone()));
    sleep(SECOND).await;
    world.send("m").await;
    world.broker.fail_next_publishes(20, PublishFault::Unavailable);
    sleep(2 * LEASE).await;
    // The copies can be sent only now; the first one's next try comes some seconds later.
    world.broker.fail_next_publishes(0, PublishFault::Unavailable);
    world.send("m").await;
    world.send("m").await;
    assert!(world.dead().is_empty());
    if who == Who::Ours {
        assert_eq!(world.effects.of("m"), 1);
        assert!(matches!(world.state("m"), State::Claimed(_)));
    }
    assert!(comes(|| world.done()).await);
    let reports = [a.stopped().await, b.stopped().await];
    (world, reports.iter().map(|report| report.duplicates).sum())
}

#[tokio::test(start_paused = true)]
async fn fm33_a_duplicate_waits_for_the_dead_letter_and_is_then_superseded() {
    let (world, duplicates) = duplicates_of_a_failure(Who::Ours).await;
    assert_eq!((world.dead().len(), world.effects.of("m"), duplicates), (1, 1, 2));
    let (world, duplicates) = duplicates_of_a_failure(CHECK).await;
    assert_eq!((world.dead().len(), duplicates), (2, 0), "the naive consumer makes a dead letter of each");
    assert_eq!(world.effects.of("m"), 9, "each was tried three times, as the first one was");
}

/// A message that was set aside is sent once more under its id, with another payload.
async fn corrected(who: Who) -> (World, Report) {
    let world = World::new(1);
    let process = world.process(who, 1, undecodable(&world));
    world.send_as("m", "not json", None).await;
    assert!(comes(|| world.done()).await);
    assert_eq!(matches!(world.state("m"), State::DeadLettered(_)), who == Who::Ours);
    world.send_as("m", "{}", None).await;
    assert!(comes(|| world.done()).await);
    assert_eq!(world.dead().len(), 1);
    let report = process.stopped().await;
    (world, report)
}

#[tokio::test(start_paused = true)]
async fn fm38_a_message_that_failed_may_be_corrected_and_sent_again_under_its_id() {
    let (world, report) = corrected(Who::Ours).await;
    assert!(matches!(world.state("m"), State::Completed { .. }));
    assert_eq!((report.processed, world.effects.of("m")), (1, 2));
    let (_, report) = corrected(MARK_ONLY).await;
    assert_eq!(
        (report.processed, report.duplicates),
        (0, 1),
        "the naive consumer swallows the corrected one"
    );
}

/// A message fails and becomes a dead letter; its duplicate comes, and then its redrive, which would succeed.
async fn redriven(who: Who) -> World {
    let world = World::new(1);
    let repaired = Arc::new(AtomicBool::new(false));
    let handler = {
        let repaired = repaired.clone();
        world.calling(move |_| {
            let repaired = repaired.load(SeqCst);
            Box::pin(async move { if repaired { Ok(()) } else { Err(Failure::permanent("no such order")) } })
        })
    };
    let process = world.process(who, 1, handler);
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    repaired.store(true, SeqCst);
    let calls = world.effects.of("m");
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    assert_eq!(world.effects.of("m"), calls, "a mere duplicate of a dead letter is no redrive");
    let redriven = Outgoing::copy("t", world.dead()[0].clone())
        .remove_prefix(wire::DEAD_LETTER_PREFIX)
        .set(wire::REDRIVE_COUNT, "1");
    world.broker.publisher().publish(redriven).await.unwrap();
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    world
}

#[tokio::test(start_paused = true)]
async fn fm09_a_redriven_dead_letter_is_processed_and_its_original_stays_superseded() {
    let world = redriven(Who::Ours).await;
    let epochs = world.effects.epochs("m");
    assert_eq!((epochs.len(), world.effects.attempts("m")), (2, vec![1, 1]));
    assert_eq!(epochs[1], epochs[0] + 1);
    assert!(matches!(world.state("m"), State::Completed { .. }));
    let world = redriven(MARK_ONLY).await;
    assert_eq!(
        world.effects.of("m"),
        3,
        "the naive consumer swallows it after the three tries of the first one"
    );
}
