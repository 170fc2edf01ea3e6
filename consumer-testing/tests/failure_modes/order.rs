//! Order, offsets and assignments.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    mpsc::channel,
};

use consumer_core::{Failure, Report, runtime::Ordering};
use consumer_testing::{drive::Driven, naive::commit_highest};
use tokio::{task::block_in_place, time::sleep};

use crate::world::*;

/// Message 0 takes a minute, those behind it no time; the process dies before it is done.
#[tokio::test(start_paused = true)]
async fn fm12_what_is_done_behind_a_running_message_is_skipped_on_replay_and_nothing_is_lost() {
    let world = World::new(1);
    for n in 0..8 {
        world.send(&n.to_string()).await;
    }
    let handler = |world: &World| {
        let effects = world.effects.clone();
        Arc::new(move |message: consumer_core::Message| {
            let effects = effects.clone();
            Box::pin(async move {
                sleep(if id(&message) == "5" { 60 * SECOND } else { SECOND }).await;
                effects.put(&message);
                Ok(())
            }) as Handling
        }) as Handler
    };
    let first = world.process(Who::Ours, 1, handler(&world));
    sleep(10 * SECOND).await;
    assert_eq!(world.broker.committed("g", "t", 0), Some(5), "6 and 7 are done, 5 is not");
    first.kill().await;
    let second = world.process(Who::Ours, 2, handler(&world));
    assert!(comes(|| world.done()).await);
    let report = second.stopped().await;
    assert_eq!((report.processed, report.duplicates), (1, 2));
    assert!((0..8).all(|n| world.effects.of(&n.to_string()) == 1), "{:?}", world.effects.ids());

    let source = || Driven::new(world.broker.source("naive", ["t"]), SECOND);
    let mut naive = source();
    let tags: Vec<_> = naive.take(8, "all are there").await.iter().map(|delivery| delivery.tag).collect();
    commit_highest(naive.source(), &tags, tags[7]);
    drop(naive);
    assert!(source().next().await.is_none(), "7 was committed, and with it 5, which nobody has handled");
}

#[tokio::test(start_paused = true)]
async fn fm13_gaps_in_the_offsets_hold_nothing_up() {
    let world = World::new(1);
    for n in 0..6 {
        world.send(&n.to_string()).await;
    }
    for offset in [0, 2, 3] {
        world.broker.remove_record("t", 0, offset);
    }
    let process = world.process(Who::Ours, 1, world.handler(1));
    sleep(5 * SECOND).await;
    assert_eq!(world.broker.committed("g", "t", 0), Some(6));
    assert_eq!(process.stopped().await.processed, 3);
}

/// A handler that blocks its thread cannot be dropped when its partition is lost: it ends in the new assignment, in
/// which its tag would be that of message 2. On real threads, since another one has to go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fm14_the_end_of_an_old_assignment_changes_nothing_in_the_new_one() {
    let world = World::new(1);
    let (unblock, blocked) = channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let handler = {
        let calls = AtomicUsize::new(0);
        world.calling(move |message| {
            let first_call = id(&message) == "1" && calls.fetch_add(1, SeqCst) == 0;
            let blocked = blocked.clone();
            Box::pin(async move {
                match &*id(&message) {
                    "1" if first_call => {
                        block_in_place(|| blocked.lock().unwrap().recv().unwrap());
                        Ok(())
                    }
                    "2" => std::future::pending().await,
                    _ => Ok(()),
                }
            })
        })
    };
    for n in 0..3 {
        world.send(&n.to_string()).await;
    }
    let first = world.process(Who::Ours, 1, handler);
    let committed = || world.broker.committed("g", "t", 0);
    assert!(comes(|| committed() == Some(1) && world.effects.ids().len() == 3).await);
    first.lose_connection();
    assert!(comes(|| world.effects.of("2") == 2).await, "the partition does not come back");
    unblock.send(()).unwrap();
    assert!(comes(|| committed() != Some(1)).await, "the new delivery waits for ever");
    assert_eq!(committed(), Some(2), "2 still runs");
    assert_eq!(world.effects.of("1"), 1, "the old call was the only one");
    first.kill().await;
    world.store.expire_claims();
    let second = world.process(Who::Ours, 2, world.handler(0));
    assert!(comes(|| world.done()).await);
    second.stopped().await;
    assert_eq!(world.effects.of("2"), 3, "nothing was lost");
}

/// Message 0 of key `a` fails twice in place; what order the effects of the keys have.
#[tokio::test(start_paused = true)]
async fn fm22_a_key_waits_for_its_retries_and_other_keys_go_on() {
    let world = World::new(1);
    for n in 0..6 {
        world.send_as(&n.to_string(), "{}", Some(if n % 2 == 0 { "a" } else { "b" })).await;
    }
    let calls = AtomicUsize::new(0);
    let effects = world.effects.clone();
    let handler: Handler = Arc::new(move |message| {
        let failing = id(&message) == "0" && calls.fetch_add(1, SeqCst) < 2;
        let effects = effects.clone();
        Box::pin(async move {
            if failing {
                return Err(Failure::transient("down"));
            }
            effects.put(&message);
            Ok(())
        })
    });
    let process = world.process_with(Who::Ours, 1, handler, ordered(Ordering::Key));
    assert!(comes(|| world.done()).await);
    process.stopped().await;
    let ids = world.effects.ids();
    let of = |odd: usize| ids.iter().filter(move |id| id.parse::<usize>().unwrap() % 2 == odd).cloned();
    assert_eq!(of(0).collect::<Vec<_>>(), ["0", "2", "4"]);
    assert_eq!(of(1).collect::<Vec<_>>(), ["1", "3", "5"]);
    assert_eq!(ids[..3], ["1", "3", "5"], "the other key was not held up");
}

/// A second member joins while two messages are in their backoff, after a call each that failed. Which of them moved,
/// if its next call came soon, and what the two have done.
async fn moved_in_its_backoff(who: Who) -> (World, Option<&'static str>, [Report; 2]) {
    let world = World::new(2);
    // Down for a while: long enough that the backoff of the first owner is cut.
    let failing = Arc::new(AtomicBool::new(true));
    let handler = {
        let failing = failing.clone();
        world.calling(move |_| {
            let failing = failing.load(SeqCst);
            let failure = Failure::transient("down").with_retry_after(30 * SECOND);
            Box::pin(async move { if failing { Err(failure) } else { Ok(()) } })
        })
    };
    let first = world.process(who, 1, handler.clone());
    sleep(SECOND).await;
    for n in 0..2 {
        world.send(&n.to_string()).await;
    }
    sleep(SECOND).await;
    assert_eq!(world.effects.ids().len(), 2);
    failing.store(false, SeqCst);
    let second = world.process(who, 2, handler);
    sleep(2 * SECOND).await;
    let moved = ["0", "1"].into_iter().find(|id| world.effects.of(id) == 2);
    assert!(comes(|| world.done()).await);
    let reports = [first.stopped().await, second.stopped().await];
    assert!(world.dead().is_empty());
    (world, moved, reports)
}

#[tokio::test(start_paused = true)]
async fn fm32_a_message_in_its_backoff_goes_to_the_new_owner_with_what_it_counted() {
    let (world, moved, reports) = moved_in_its_backoff(Who::Ours).await;
    let moved = moved.expect("the claim was released: the new owner need not wait for it");
    assert_eq!(world.effects.attempts(moved), [1, 2]);
    assert_eq!(reports.map(|report| (report.processed, report.returned)), [(1, 1), (1, 0)]);
    assert_eq!(world.effects.ids().len(), 4);

    let (world, _, reports) = moved_in_its_backoff(MARK).await;
    assert_eq!(reports.map(|report| (report.processed, report.duplicates)), [(1, 0), (0, 1)]);
    assert_eq!(
        world.effects.ids().len(),
        3,
        "the naive consumer acks it after the one call that failed: lost"
    );
}
