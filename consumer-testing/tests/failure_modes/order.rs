//! Order, offsets and assignments.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use consumer_core::{Failure, runtime::Ordering};
use tokio::time::sleep;

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

/// The connection is lost and comes back while a handler of the old assignment runs on for a moment.
#[tokio::test(start_paused = true)]
async fn fm14_the_end_of_an_old_assignment_changes_nothing_in_the_new_one() {
    let world = World::new(1);
    for n in 0..3 {
        world.send(&n.to_string()).await;
    }
    let process = world.process(Who::Ours, 1, world.handler(10));
    for _ in 0..5 {
        sleep(SECOND).await;
        process.lose_connection();
    }
    assert_eq!(world.broker.committed("g", "t", 0), None);
    assert!(comes(|| world.done()).await);
    let report = process.stopped().await;
    assert_eq!(world.effects.ids().len(), 3, "each effect once");
    assert_eq!((report.processed, report.returned), (3, 15));
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

/// A second member joins while a message is in its backoff.
#[tokio::test(start_paused = true)]
async fn fm32_a_message_in_its_backoff_goes_to_the_new_owner_with_what_it_counted() {
    let world = World::new(2);
    // Down for a while: long enough that the backoff of the first owner is cut.
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let handler = {
        let failing = failing.clone();
        world.calling(move |_| {
            let failing = failing.load(SeqCst);
            let failure = Failure::transient("down").with_retry_after(30 * SECOND);
            Box::pin(async move { if failing { Err(failure) } else { Ok(()) } })
        })
    };
    let first = world.process(Who::Ours, 1, handler.clone());
    sleep(SECOND).await;
    for n in 0..2 {
        world.send(&n.to_string()).await;
    }
    sleep(SECOND).await;
    assert_eq!(world.effects.ids().len(), 2);
    failing.store(false, SeqCst);
    let second = world.process(Who::Ours, 2, handler);
    sleep(2 * SECOND).await;
    let moved: Vec<_> = ["0", "1"].into_iter().filter(|id| world.effects.of(id) == 2).collect();
    assert_eq!(moved.len(), 1, "the claim was released: the new owner need not wait for it");
    assert_eq!(world.effects.attempts(moved[0]), [1, 2]);
    assert!(comes(|| world.done()).await);
    let reports = [first.stopped().await, second.stopped().await];
    assert_eq!(reports.map(|report| (report.processed, report.returned)), [(1, 1), (1, 0)]);
    assert_eq!(world.effects.ids().len(), 4);
    assert!(world.dead().is_empty());
}
