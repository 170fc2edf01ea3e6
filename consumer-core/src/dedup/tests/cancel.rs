//! Dropping the future of the stack at each of its steps.

use tower::ServiceBuilder;

use super::*;
use crate::{DeadLetterLayer, memory::MemoryBroker};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scenario {
    Succeeds,
    Fails,
    Suspect,
    Busy,
    Joins,
    Waits,
    DeadLetters,
}

/// Polls `n` times, with time for answers in between. True when it was done by then; else it is dropped.
async fn poll_and_drop<F: Future + Unpin>(mut future: F, n: usize) -> bool {
    for _ in 0..n {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.poll_unpin(cx))).await;
        if polled.is_ready() {
            return true;
        }
        sleep(SECOND / 10).await;
    }
    false
}

async fn dropped_after(n: usize, scenario: Scenario, slow_store: bool) -> bool {
    let (store, effects) = (Spy::new(), Count::default());
    let broker = MemoryBroker::new();
    broker.create_topic("dead", 1);
    if slow_store {
        store.delay_all(Duration::from_millis(150));
    }
    if scenario == Scenario::Suspect {
        dies_with(&store.memory, "a", 9, Mode::Normal).await;
    }
    let process = process(&store, 1, {
        let effects = effects.clone();
        move |message| {
            let effects = effects.clone();
            Box::pin(async move {
                sleep(SECOND / 4).await;
                if scenario == Scenario::Waits {
                    message.while_waiting(sleep(SECOND / 4)).await;
                }
                if matches!(scenario, Scenario::Fails | Scenario::DeadLetters) {
                    return Err(Failure::permanent("no"));
                }
                effects.add();
                Ok(())
            })
        }
    });
    let dead = (scenario == Scenario::DeadLetters).then(|| DeadLetterLayer::new(broker.publisher(), "dead"));
    let mut stack = ServiceBuilder::new().option_layer(dead).service(process.dedup.clone());
    let mut other = None;
    match scenario {
        Scenario::Busy => {
            let claimed = store.memory.claim(request("a", 9)).await;
            assert!(matches!(claimed, Ok(ClaimReply::Claimed(_))));
        }
        Scenario::Joins => {
            other = Some(process.spawn(message("a")));
            tokio::task::yield_now().await;
        }
        _ => {}
    }
    let done = poll_and_drop(stack.ready().await.unwrap().call(message("a")), n).await;
    if scenario == Scenario::Busy {
        store.memory.expire_claims();
    }
    if let Some(other) = other {
        assert_eq!(other.await.unwrap().unwrap(), Outcome::Processed);
    }
    sleep(2 * SECOND).await;

    let context = format!("{scenario:?}, dropped after {n} polls, slow store: {slow_store}");
    assert_eq!(process.entries(), 0, "{context}");
    process.assert_empty();
    let before = effects.get();
    assert!(before <= 1, "{context}");
    let state = store.state("a");
    match state {
        State::Completed { .. } => assert_eq!(before, 1, "completed without its effect: {context}"),
        State::Claimed(held) if matches!(scenario, Scenario::Busy | Scenario::Suspect) => {
            assert_eq!(held.owner.process, 9)
        }
        State::Absent | State::Released(_) => assert_eq!(before, 0, "an effect was forgotten: {context}"),
        State::DeadLettered(_) => assert_eq!(broker.records("dead").len(), 1),
        _ => panic!("{state:?} is left behind: {context}"),
    }
    if let State::Released(numbers) = state {
        let failed = u32::from(matches!(scenario, Scenario::Fails | Scenario::DeadLetters));
        assert!(numbers.attempts <= failed && numbers.crashes == 0, "{numbers:?}: {context}");
    }

    // It can be worked on at once, and in the end the effect has happened once.
    let again = tokio::time::timeout(10 * SECOND, process.call(message("a"))).await;
    let again = again.unwrap_or_else(|_| panic!("the key is stuck: {context}"));
    match scenario {
        Scenario::Fails => drop(again.unwrap_err()),
        Scenario::DeadLetters => {
            assert!(again.is_ok_and(|outcome| outcome == Outcome::Duplicate) || before == 0)
        }
        _ => {
            let expected = if before == 1 { Outcome::Duplicate } else { Outcome::Processed };
            assert_eq!(again.unwrap(), expected, "{context}");
            assert_eq!(effects.get(), 1, "{context}");
        }
    }
    sleep(2 * SECOND).await;
    process.assert_empty();
    done
}

#[tokio::test(start_paused = true)]
async fn fm25_dropped_at_any_step_it_leaves_no_entry_no_claim_and_no_place_behind() {
    use Scenario::*;
    for scenario in [Succeeds, Fails, Suspect, Busy, Joins, Waits, DeadLetters] {
        for slow_store in [false, true] {
            let mut n = 0;
            while !dropped_after(n, scenario, slow_store).await {
                n += 1;
                // Busy waits for a lease that nobody ends: enough once it asks again and again.
                if n > 40 {
                    assert_eq!(scenario, Busy);
                    break;
                }
            }
            assert!(n > 0, "{scenario:?} was never dropped half way");
        }
    }
}
