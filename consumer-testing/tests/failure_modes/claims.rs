//! Who may run a message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use consumer_core::{Failure, Message, dedup::protocol::State};
use consumer_testing::{drive::Driven, naive::requeue_busy};
use tokio::time::{Instant, sleep, sleep_until};

use crate::world::*;

/// One message, twice in the topic, for two processes.
async fn asked_at_once(who: Who) -> usize {
    let world = World::new(2);
    let (a, b) = (world.process(who, 1, world.handler(5)), world.process(who, 2, world.handler(5)));
    sleep(SECOND).await;
    world.send("m").await;
    world.send("m").await;
    assert!(comes(|| world.done()).await, "{who:?} holds them for ever");
    a.stopped().await;
    b.stopped().await;
    world.effects.of("m")
}

#[tokio::test(start_paused = true)]
async fn fm01_two_consumers_that_ask_at_once_have_one_effect() {
    assert_eq!(asked_at_once(Who::Ours).await, 1);
    assert_eq!(asked_at_once(CHECK).await, 2, "the naive consumer has the effect twice");
}

#[tokio::test(start_paused = true)]
async fn fm01_duplicates_in_one_process_have_one_effect() {
    for (who, expected) in [(Who::Ours, 1), (CHECK, 2)] {
        let world = World::new(1);
        world.send("m").await;
        world.broker.inject_duplicate_delivery(1);
        let process = world.process(who, 1, world.handler(5));
        assert!(comes(|| world.done()).await);
        let report = process.stopped().await;
        assert_eq!(world.effects.of("m"), expected, "{who:?}");
        assert_eq!((report.processed + report.duplicates, report.processed), (2, expected as u64));
    }
}

/// The process dies between its claim and its effect, and the message comes again at once.
async fn dies_after_the_claim(who: Who) -> usize {
    let world = World::new(1);
    world.send("m").await;
    let first = world.process(who, 1, world.handler(10));
    sleep(5 * SECOND).await;
    first.kill().await;
    let second = world.process(who, 2, world.handler(10));
    assert!(comes(|| world.done()).await, "{who:?} holds it for ever");
    second.stopped().await;
    world.effects.of("m")
}

#[tokio::test(start_paused = true)]
async fn fm02_a_message_whose_process_died_after_the_claim_is_not_lost() {
    assert_eq!(dies_after_the_claim(Who::Ours).await, 1);
    assert_eq!(dies_after_the_claim(MARK).await, 0, "the naive consumer takes it for a duplicate: lost");
}

/// The replies to the first two claims are lost on their way.
async fn loses_replies(who: Who) -> usize {
    let world = World::new(1);
    world.send("m").await;
    world.lose_replies(2);
    let process = world.process(who, 1, world.handler(1));
    sleep(LEASE / 2).await;
    assert!(world.done(), "{who:?} waits for its own claim");
    process.stopped().await;
    world.effects.of("m")
}

#[tokio::test(start_paused = true)]
async fn fm03_a_lost_reply_to_a_claim_neither_loses_nor_holds_the_message() {
    assert_eq!(loses_replies(Who::Ours).await, 1, "it need not wait for its own lease");
    assert_eq!(loses_replies(MARK).await, 0, "the naive consumer takes its own mark for another one's: lost");
}

/// What came of a message whose first owner stalled beyond its lease.
struct TakenOver {
    world: World,
    /// What the store knew when both had ended, or only the first one.
    between: State,
    /// Late successes that were recorded.
    overlaps: usize,
}

/// How the two owners end, and when, counted in seconds from the first delivery.
struct Ends {
    first: (u32, bool),
    second: (u32, bool),
}

/// Three copies of a message. The lease of the first owner ends while its handler runs, and the second copy goes to
/// another process after 32 s. The third copy comes after 48 s, and its handler succeeds.
async fn taken_over(who: Who, ends: Ends) -> TakenOver {
    let world = World::new(2);
    let start = Instant::now() + 2 * SECOND;
    let handler = |(seconds, succeeds): (u32, bool)| -> Handler {
        let effects = world.effects.clone();
        Arc::new(move |message| {
            let (effects, end) = (effects.clone(), start + seconds * SECOND);
            let succeeds = succeeds || Instant::now() >= start + 48 * SECOND;
            Box::pin(async move {
                sleep_until(end).await;
                if !succeeds {
                    return Err(Failure::permanent("it has failed"));
                }
                effects.put(&message);
                Ok(())
            })
        })
    };
    let first = world.process(who, 1, handler(ends.first));
    sleep(SECOND).await;
    let second = world.process(who, 2, handler(ends.second));
    sleep(SECOND).await;
    world.send("m").await;
    sleep(31 * SECOND).await;
    // The naive mark has run out by itself.
    first.stall(true);
    world.store.expire_claims();
    sleep(SECOND).await;
    world.send("m").await;
    sleep(16 * SECOND).await;
    first.stall(false);
    let between = world.state("m");
    world.send("m").await;
    assert!(comes(|| world.done()).await, "{who:?} holds a copy for ever");
    let overlaps = first.overlaps() + second.overlaps();
    first.stopped().await;
    second.stopped().await;
    TakenOver { world, between, overlaps }
}

#[tokio::test(start_paused = true)]
async fn fm04_a_stalled_owner_that_fails_does_not_touch_the_claim_of_the_new_one() {
    let ends = || Ends { first: (40, false), second: (55, true) };
    let ours = taken_over(Who::Ours, ends()).await;
    let State::Claimed(held) = ours.between else { panic!("{:?}", ours.between) };
    assert_eq!(held.owner.process, 2);
    assert_eq!(ours.world.effects.of("m"), 1, "nobody else may run it meanwhile");
    let naive = taken_over(MARK, ends()).await;
    assert_eq!(
        naive.world.effects.of("m"),
        2,
        "it deletes the mark of the new owner, and the third copy runs"
    );
}

/// The second owner fails after the first one has succeeded.
#[tokio::test(start_paused = true)]
async fn fm05_fm06_a_stalled_owner_that_succeeds_is_recorded_and_nothing_takes_that_back() {
    let ends = || Ends { first: (40, true), second: (41, false) };
    let ours = taken_over(Who::Ours, ends()).await;
    assert_eq!(ours.overlaps, 1);
    assert!(matches!(ours.between, State::Completed { .. }), "{:?}", ours.between);
    assert!(matches!(ours.world.state("m"), State::Completed { .. }));
    assert_eq!(ours.world.effects.of("m"), 1);
    let naive = taken_over(MARK, ends()).await;
    assert_eq!(
        naive.world.effects.of("m"),
        2,
        "the failure deletes the mark of the success, and the third copy runs"
    );
}

/// Waiting messages ask seldom, and nothing is handed to the broker for it.
#[tokio::test(start_paused = true)]
async fn fm07_a_busy_key_is_held_and_asked_for_without_a_hot_loop() {
    let world = World::new(2);
    let first = world.process(Who::Ours, 1, world.handler(600));
    let second = world.process(Who::Ours, 2, world.handler(600));
    sleep(SECOND).await;
    world.send("m").await;
    world.send("m").await;
    sleep(500 * SECOND).await;
    let claims = world.store.stats().claims;
    assert!(claims < 40, "{claims} claims in 500 s");
    assert!(comes(|| world.done()).await);
    let reports = [first.stopped().await, second.stopped().await];
    assert_eq!(reports.map(|report| report.received), [1, 1], "nothing came a second time");
    assert_eq!(world.effects.of("m"), 1);

    let mut naive = Driven::new(world.broker.source("naive", ["t"]), SECOND);
    let started = Instant::now();
    for _ in 0..1_000 {
        let busy = naive.next().await.unwrap();
        requeue_busy(naive.source(), busy.tag);
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "1,000 deliveries in no time");
}

/// A handler that takes longer than a lease, and a copy for another process.
async fn longer_than_the_lease(who: Who) -> usize {
    let world = World::new(2);
    let (a, b) = (world.process(who, 1, world.handler(200)), world.process(who, 2, world.handler(200)));
    sleep(SECOND).await;
    world.send("m").await;
    sleep(60 * SECOND).await;
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    a.stopped().await;
    b.stopped().await;
    world.effects.of("m")
}

#[tokio::test(start_paused = true)]
async fn fm30_a_handler_that_outlives_the_lease_keeps_its_claim() {
    assert_eq!(longer_than_the_lease(Who::Ours).await, 1);
    assert_eq!(longer_than_the_lease(MARK).await, 2, "the naive mark has run out");
}

/// A process is cut off while its handler runs, and nobody tells it that copies go to another one, before and after its
/// lease would have ended. How many handlers of the message ran at the same time.
async fn cut_off(who: Who) -> usize {
    struct Leave(Arc<AtomicUsize>);
    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let world = World::new(2);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = |process: &'static str| -> Handler {
        let (running, most, effects) = (running.clone(), most.clone(), world.effects.clone());
        Arc::new(move |message| {
            if id(&message) != "m" {
                return Box::pin(async { Ok(()) });
            }
            effects.put(&Message::builder().id(process).build());
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            let leave = Leave(running.clone());
            Box::pin(async move {
                let _leave = leave;
                sleep(100 * SECOND).await;
                Ok(())
            })
        })
    };
    let (first, second) = (world.process(who, 1, handler("a")), world.process(who, 2, handler("b")));
    sleep(SECOND).await;
    world.send("m").await;
    sleep(SECOND).await;
    first.stall(true);
    // The partitions take turns: what the first one gets in between is another message.
    world.send("m").await;
    sleep(LEASE + 5 * SECOND).await;
    world.send("other").await;
    world.send("m").await;
    assert!(comes(|| world.effects.of("b") == 1).await, "nobody takes it over");
    assert_eq!(world.effects.of("a"), 1);
    sleep(SECOND).await;
    first.kill().await;
    assert!(comes(|| world.done()).await);
    second.stopped().await;
    most.load(SeqCst)
}

/// It stops before another process may start; so the two never overlap.
#[tokio::test(start_paused = true)]
async fn fm37_a_process_that_is_cut_off_stops_before_another_one_starts() {
    assert_eq!(cut_off(Who::Ours).await, 1);
    assert_eq!(cut_off(MARK).await, 2, "the naive consumer goes on");
}
