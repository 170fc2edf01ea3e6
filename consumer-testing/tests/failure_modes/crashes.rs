//! Messages that kill their process.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use tokio::time::sleep;

use crate::world::*;

/// Runs processes until the topic is done or so many have died. `poison` kills its process five seconds after its
/// handler was called; the others take two.
async fn killed_by_poison(who: Who, innocents: usize, deaths: usize) -> (World, usize) {
    let world = World::new(1);
    for n in 0..innocents {
        world.send(&format!("innocent-{n}")).await;
    }
    world.send("poison").await;
    let mut died = 0;
    loop {
        let dying = Arc::new(AtomicBool::new(false));
        let handler = {
            let dying = dying.clone();
            world.calling(move |message| {
                let dying = dying.clone();
                Box::pin(async move {
                    if id(&message) == "poison" {
                        sleep(SECOND).await;
                        dying.store(true, SeqCst);
                        std::future::pending::<()>().await;
                    }
                    sleep(2 * SECOND).await;
                    Ok(())
                })
            })
        };
        let process = world.process(who, 100 + died as u128, handler);
        assert!(comes(|| dying.load(SeqCst) || world.done()).await, "{who:?}: nothing goes on");
        if world.done() {
            process.stopped().await;
            return (world, died);
        }
        process.kill().await;
        died += 1;
        if died == deaths {
            return (world, died);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fm11_a_message_that_kills_its_process_is_set_aside_after_three_deaths_alone() {
    let (world, died) = killed_by_poison(Who::Ours, 0, 20).await;
    assert_eq!(died, 4, "the first death makes the suspect, three count");
    let dead = world.dead();
    assert_eq!(dead.len(), 1);
    let header = |name: &str| dead[0].headers().get_str(name).unwrap().to_owned();
    assert_eq!(header("dead-letter-reason"), "attempts-exhausted");
    assert_eq!(header("dead-letter-attempts"), "3");
    assert_eq!(header("dead-letter-error"), "process died 3 times while handling this message alone");

    let (world, died) = killed_by_poison(CHECK, 0, 20).await;
    assert_eq!((died, world.dead().len()), (20, 0), "the naive consumer crashes for ever");
}

#[tokio::test(start_paused = true)]
async fn fm23_those_in_flight_beside_it_are_charged_nothing() {
    let (world, died) = killed_by_poison(Who::Ours, 10, 20).await;
    assert_eq!(world.dead().len(), 1, "only the poison is set aside");
    assert!(died >= 4, "{died}");
    assert!(world.done());
    for n in 0..10 {
        let attempts = world.effects.attempts(&format!("innocent-{n}"));
        assert!(attempts.iter().all(|attempt| *attempt == 1), "{attempts:?}");
    }

    let (world, died) = killed_by_poison(CHECK, 10, 20).await;
    assert_eq!(
        (died, world.broker.lag("g", "t")),
        (20, 11),
        "in the naive consumer the innocent are never done"
    );
    assert!(
        (0..10).all(|n| world.effects.of(&format!("innocent-{n}")) == 20),
        "each was delivered to every process"
    );
}
