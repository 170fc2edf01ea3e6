//! Who may run a message.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use consumer_core::{
    Failure,
    dedup::{ClaimReply, ClaimRequest, DedupStore, Owner, StoreKey, protocol::State},
};
use tokio::time::sleep;

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

#[tokio::test(start_paused = true)]
async fn fm03_a_lost_reply_to_a_claim_neither_loses_nor_holds_the_message() {
    let world = World::new(1);
    world.send("m").await;
    world.store.lose_replies(2);
    let process = world.process(Who::Ours, 1, world.handler(1));
    sleep(LEASE / 2).await;
    assert_eq!(world.effects.of("m"), 1, "it need not wait for its own lease");
    assert_eq!(process.stopped().await.processed, 1);
}

#[tokio::test(start_paused = true)]
async fn fm04_a_stalled_owner_that_fails_does_not_touch_the_claim_of_the_new_one() {
    let world = World::new(1);
    let store = world.store.clone();
    // The process stalls here; when it goes on, its claim is another one's.
    let handler = world.calling(move |_| {
        let store = store.clone();
        Box::pin(async move {
            store.expire_claims();
            let request = ClaimRequest {
                key: StoreKey::new("mails".into(), "m".into()),
                owner: Owner { process: 2, seq: 1 },
                fingerprint: None,
                lease: 10 * LEASE,
                grace: LEASE,
                attempt: 1,
                redrive: 0,
            };
            assert!(matches!(store.claim(request).await, Ok(ClaimReply::Claimed(_))));
            Err(Failure::permanent("it has failed, too late"))
        })
    });
    let process = world.process(Who::Ours, 1, handler);
    world.send("m").await;
    sleep(5 * LEASE).await;
    let State::Claimed(held) = world.state("m") else { panic!("{:?}", world.state("m")) };
    assert_eq!(held.owner.process, 2);
    assert_eq!(world.effects.of("m"), 1, "nobody else may run it meanwhile");
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn fm04_the_naive_consumer_deletes_the_mark_of_the_new_owner() {
    let world = World::new(1);
    let effects = world.effects.clone();
    let handler: Handler = Arc::new(move |message| {
        let effects = effects.clone();
        Box::pin(async move {
            if message.payload() == "stale" {
                sleep(14 * SECOND).await;
                return Err(Failure::transient("too late"));
            }
            sleep(25 * SECOND).await;
            effects.put(&message);
            Ok(())
        })
    });
    let process = world.process(MARK, 1, handler);
    // Its mark runs out after 30 s, and it fails for good after 45 s.
    world.send_as("m", "stale", None).await;
    sleep(32 * SECOND).await;
    world.send("m").await;
    sleep(18 * SECOND).await;
    assert_eq!(world.effects.of("m"), 0, "the new owner still runs");
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    assert_eq!(world.effects.of("m"), 2, "its key was opened for the third one");
}

#[tokio::test(start_paused = true)]
async fn fm05_fm06_a_stalled_owner_that_succeeds_is_recorded_and_nothing_takes_that_back() {
    let world = World::new(1);
    let store = world.store.clone();
    // Its claim is taken over in the moment in which it succeeds.
    let handler = world.calling(move |_| {
        let store = store.clone();
        Box::pin(async move {
            store.expire_claims();
            Ok(())
        })
    });
    let process = world.process(Who::Ours, 1, handler);
    world.send("m").await;
    assert!(comes(|| world.done()).await);
    assert!(matches!(world.state("m"), State::Completed { .. }));
    for _ in 0..3 {
        world.send("m").await;
        assert!(comes(|| world.done()).await);
        assert!(matches!(world.state("m"), State::Completed { .. }));
    }
    let report = process.stopped().await;
    assert_eq!((report.processed, report.duplicates, world.effects.of("m")), (1, 3, 1));
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

/// Cut off from the store it stops before another process may start; so the two never overlap.
#[tokio::test(start_paused = true)]
async fn fm37_a_process_that_is_cut_off_stops_before_another_one_starts() {
    let world = World::new(1);
    let running = Arc::new(AtomicUsize::new(0));
    struct Leave(Arc<AtomicUsize>);
    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let handler = {
        let running = running.clone();
        world.calling(move |_| {
            let before = running.fetch_add(1, SeqCst);
            let leave = Leave(running.clone());
            Box::pin(async move {
                let _leave = leave;
                assert_eq!(before, 0, "two run at once");
                sleep(100 * SECOND).await;
                Ok(())
            })
        })
    };
    world.send("m").await;
    let first = world.process(Who::Ours, 1, handler.clone());
    sleep(SECOND).await;
    first.stall(true);
    // The broker gives the message to somebody else, and nobody tells the first one.
    let second = world.process(Who::Ours, 2, handler);
    world.send("m").await;
    assert!(comes(|| world.effects.of("m") == 2).await, "nobody takes it over");
    assert_eq!(running.load(SeqCst), 1);
    first.kill().await;
    assert!(comes(|| world.done()).await);
    second.stopped().await;
}
