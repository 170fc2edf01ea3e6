//! A key whose message waits for its delayed retry.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use consumer_core::{
    CatchPanicLayer, DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, Message,
    dedup::{Gate, StoreKey},
    runtime::Ordering,
};
use tokio::time::sleep;
use tower::{ServiceBuilder, service_fn, util::BoxCloneService};

use crate::{severed::Severed, world::*};

/// Each call of a handler, as an outside ledger sees it: key and number of the message.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<(String, usize)>>>);

impl Calls {
    fn of(&self, key: &str) -> Vec<usize> {
        self.0.lock().unwrap().iter().filter(|(of, _)| of == key).map(|(_, n)| *n).collect()
    }

    /// No message was called after a later one of its key.
    fn are_in_order(&self) -> bool {
        let keys: BTreeSet<String> = self.0.lock().unwrap().iter().map(|(key, _)| key.clone()).collect();
        keys.iter().all(|key| self.of(key).is_sorted())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    /// Delayed retry as it is without parking: in a run with an order it would be refused.
    Passing,
}

struct Parks {
    world: World,
    calls: Calls,
}

type Fails = fn(&str, u32) -> Option<Failure>;

/// The number is what follows the key: `a12`.
fn number(id: &str) -> usize {
    id.trim_start_matches(|c: char| c.is_alphabetic()).parse().unwrap()
}

impl Parks {
    fn new(partitions: usize) -> Self {
        Self { world: World::new(partitions), calls: Calls::default() }
    }

    async fn send(&self, key: &str, n: usize) {
        self.world.send_as(&format!("{key}{n}"), "{}", Some(key)).await;
    }

    fn stack(&self, who: Who, nonce: u128, line: &Severed, fails: Fails) -> Stack {
        let publisher = line.publisher(self.world.broker.publisher());
        let dedup = DedupLayer::new(line.clone(), "mails").as_process(nonce, Gate::new()).lease(LEASE);
        let delayed = DelayedRetryLayer::new(publisher.clone())
            .delays([30 * SECOND, 60 * SECOND])
            .clock(self.world.broker.clock());
        let delayed = match who {
            Who::Ours => delayed.parking(dedup.parking()),
            Who::Passing => delayed,
        };
        let (calls, effects) = (self.calls.clone(), self.world.effects.clone());
        let handler = service_fn(move |message: Message| {
            let id = id(&message);
            let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
            calls.0.lock().unwrap().push((key, number(&id)));
            let failure = fails(&id, message.attempt());
            if failure.is_none() {
                effects.put(&message);
            }
            async move { failure.map_or(Ok(()), Err) }
        });
        BoxCloneService::new(
            ServiceBuilder::new()
                .layer(DeadLetterLayer::new(publisher, "dead"))
                .layer(delayed)
                .layer(dedup)
                .layer(CatchPanicLayer::new())
                .service(handler),
        )
    }

    fn process(&self, who: Who, nonce: u128, fails: Fails) -> Process {
        let ordering = if who == Who::Ours { Ordering::Key } else { Ordering::None };
        self.world.start(|line| self.stack(who, nonce, line, fails), ordered(ordering))
    }

    fn parked(&self, key: &str) -> usize {
        self.world.store.parked(&StoreKey::new("mails".into(), format!("t\0{key}").into())).len()
    }

    /// Nothing is left to be done, and nothing waits.
    fn is_over(&self, keys: &[&str], effects: usize) -> bool {
        let different: BTreeSet<_> = self.world.effects.ids().into_iter().collect();
        different.len() == effects && self.world.done() && keys.iter().all(|key| self.parked(key) == 0)
    }
}

/// Down for the first two attempts of `a0`.
fn a0_is_down(id: &str, attempt: u32) -> Option<Failure> {
    (id == "a0" && attempt < 3).then(|| Failure::transient("down"))
}

/// Fifty later messages of its key, and as many of others, come while `a0` waits for its retries.
async fn flows_past(who: Who) -> (Parks, bool) {
    let parks = Parks::new(2);
    let process = parks.process(who, 1, a0_is_down);
    for n in 0..=50 {
        parks.send("a", n).await;
        parks.send(["b", "c"][n % 2], n / 2).await;
        sleep(SECOND).await;
    }
    let others = parks.calls.of("b").len() + parks.calls.of("c").len();
    assert_eq!(others, 51, "other keys go on");
    assert!(comes(|| parks.is_over(&["a"], 102)).await);
    process.stopped().await;
    let in_order = parks.calls.are_in_order();
    (parks, in_order)
}

#[tokio::test(start_paused = true)]
async fn fm22_fifty_later_messages_of_a_key_wait_behind_its_delayed_retry() {
    let (parks, in_order) = flows_past(Who::Ours).await;
    assert!(in_order, "{:?}", parks.calls.of("a"));
    assert_eq!(parks.calls.of("a").len(), 53, "each once, and the first one three times");
    assert!(parks.world.dead().is_empty());

    let (parks, in_order) = flows_past(Who::Passing).await;
    assert!(!in_order, "without parking they pass: {:?}", parks.calls.of("a"));
}

/// The first message of every key is down once.
fn first_is_down(id: &str, attempt: u32) -> Option<Failure> {
    (number(id) == 0 && attempt == 1).then(|| Failure::transient("down"))
}

#[tokio::test(start_paused = true)]
async fn fm22_a_parked_key_stays_parked_for_its_new_owner() {
    const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let parks = Parks::new(4);
    let first = parks.process(Who::Ours, 1, first_is_down);
    for n in 0..3 {
        for key in KEYS {
            parks.send(key, n).await;
        }
    }
    sleep(SECOND).await;
    assert!(KEYS.iter().all(|key| parks.parked(key) == 3));
    // Partitions move while all of it waits, and once more.
    let second = parks.process(Who::Ours, 2, first_is_down);
    sleep(10 * SECOND).await;
    for key in KEYS {
        parks.send(key, 3).await;
    }
    sleep(10 * SECOND).await;
    assert_eq!(parks.calls.0.lock().unwrap().len(), KEYS.len(), "only the first of each was called");
    let reports = [first.stopped().await];
    for key in KEYS {
        parks.send(key, 4).await;
    }
    assert!(comes(|| parks.is_over(&KEYS, 30)).await);
    let second = second.stopped().await;
    assert!(parks.calls.are_in_order());
    assert!(reports[0].deferred > 0 && second.deferred > 0 && second.processed > 0, "{second}");
    assert!(parks.world.dead().is_empty());
}

/// `a0` is down once, and `a2` fails for good.
fn down_and_out(id: &str, attempt: u32) -> Option<Failure> {
    match id {
        "a0" if attempt == 1 => Some(Failure::transient("down")),
        "a2" => Some(Failure::permanent("no")),
        _ => None,
    }
}

/// A process that dies at each of its steps in turn, and another one that goes on. The steps are what it asks of the store
/// and what it publishes: failed → deferred in the list → copy published → recorded, and so on up to the last one that
/// leaves the list. Each is done and not answered, or not done.
#[tokio::test(start_paused = true)]
async fn fm22_fm34_a_crash_at_any_step_loses_nothing_keeps_the_order_and_parks_no_key_for_ever() {
    let mut died = 0;
    for step in 0.. {
        let mut is_dead = [false; 2];
        for applied in [false, true] {
            let at = format!("step {step}, applied: {applied}");
            let parks = Parks::new(1);
            let first = parks.process(Who::Ours, 1, down_and_out);
            first.kill_after(step, applied);
            for n in 0..4 {
                parks.send("a", n).await;
                parks.send("b", n).await;
            }
            let over = || parks.is_over(&["a", "b"], 7) && !parks.world.dead().is_empty();
            assert!(comes(|| first.is_dead() || over()).await, "{at}");
            is_dead[usize::from(applied)] = first.is_dead();
            if first.is_dead() {
                first.kill().await;
            } else {
                first.stopped().await;
            }
            let second = parks.process(Who::Ours, 2, down_and_out);
            // Copies too many come as well.
            assert!(comes(over).await, "{at}: {:?}", parks.world.effects.ids());
            sleep(200 * SECOND).await;
            assert!(over(), "{at}: {:?}", parks.world.effects.ids());
            assert!(parks.calls.are_in_order(), "{at}: {:?}", parks.calls.0.lock().unwrap());
            let letters: BTreeSet<String> = parks.world.dead().iter().map(id).collect();
            assert_eq!(letters.into_iter().collect::<Vec<_>>(), ["a2"], "{at}");
            let before = parks.world.effects.ids().len();
            parks.send("a", 4).await;
            sleep(SECOND).await;
            assert_eq!(parks.world.effects.ids().len(), before + 1, "{at}: the key is free");
            second.stopped().await;
        }
        if is_dead == [false; 2] {
            break;
        }
        died += 1;
    }
    assert!(died > 30, "a run has more steps than {died}");
}
