//! Who has a place in the list of a key, and who gives it up.

use super::{
    parking::{World, first_is_down, id},
    *,
};
use crate::{
    dedup::{
        ClaimReply, ClaimRequest, DedupStore, Mode, OnOutage, Owner, RenewRequest, StoreKey, fingerprint,
    },
    message::Defect,
};

impl World {
    async fn send_payload(&self, id: &str, payload: &'static str) {
        let message = Message::builder().payload(payload).id(id.to_owned()).key("a").build();
        self.broker.publisher().publish(Outgoing::new("t", message)).await.unwrap();
    }

    /// Without delays, or with those of the other tests.
    async fn run_with(&self, dedup: DedupLayer<MemoryStore>, delays: &[Duration], idle: Duration) -> Report {
        let done = self.done.clone();
        let stack = ServiceBuilder::new()
            .layer(DeadLetterLayer::new(self.broker.publisher(), "dead"))
            .layer(layer(&self.broker).delays(delays.iter().copied()).parking(dedup.parking()))
            .layer(dedup)
            .service(service_fn(move |message: Message| {
                let failure = first_is_down(&id(&message), message.attempt());
                if failure.is_none() {
                    done.lock().unwrap().push(id(&message));
                }
                async move { failure.map_or(Ok(()), Err) }
            }));
        let consumer = Consumer::new(self.broker.source("g", ["t"]), stack).ordering(Ordering::Key);
        consumer.stop_when_idle(idle).run().await.unwrap()
    }

    fn dedup(&self) -> DedupLayer<MemoryStore> {
        DedupLayer::new(self.store.clone(), "c")
    }

    fn dead_ids(&self) -> Vec<String> {
        self.dead().into_iter().map(|(id, _)| id).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn another_payload_under_the_id_of_a_waiting_message_does_not_give_away_its_place() {
    let world = World::new();
    let run = world.run(1000, first_is_down);
    world.send("a", "a0").await;
    sleep(SECOND).await;
    world.send_payload("a0", "another").await;
    world.send("a", "a1").await;
    sleep(SECOND).await;
    assert!(world.done().is_empty(), "a0 still waits");
    run.await.unwrap();
    assert_eq!((world.done(), world.parked("a")), (vec!["a0".to_owned(), "a1".to_owned()], 0));
    assert_eq!(world.dead_ids(), ["a0"], "what has the other payload is a conflict");
    assert_eq!(
        world.broker.records("dead")[0].headers().get_str("dead-letter-reason"),
        Some("conflict"),
        "{:?}",
        world.dead()
    );
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_a_duplicate_also_when_no_more_are_parked() {
    let world = World::new();
    let run = world.run(1, first_is_down);
    world.send("a", "early").await;
    sleep(SECOND).await;
    world.send("a", "a0").await;
    sleep(SECOND).await;
    world.send("a", "early").await;
    world.send("a", "a1").await;
    sleep(SECOND).await;
    world.send("a", "a1").await;
    let report = run.await.unwrap();
    assert_eq!(world.dead_ids(), ["a1"], "once, and the early one never");
    assert_eq!((report.duplicates, report.processed, report.dead_lettered), (2, 2, 1), "{report}");
    assert_eq!(world.done(), ["early", "a0"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_for_crashes_waits_for_nothing() {
    let world = World::new();
    // Its process died over it, and nothing else ran there.
    let claim = ClaimRequest {
        key: StoreKey::new("c".into(), "a0".into()),
        owner: Owner { process: 9, seq: 1 },
        fingerprint: Some(fingerprint(b"x")),
        lease: SECOND,
        grace: 3600 * SECOND,
        attempt: 1,
        redrive: 0,
    };
    let Ok(ClaimReply::Claimed(claim)) = world.store.claim(claim).await else { panic!("it is free") };
    world.store.renew(vec![RenewRequest { claim, attempts: 0, mode: Mode::Alone }]).await.unwrap();
    sleep(2 * SECOND).await;
    world.send("a", "a0").await;
    let report = world.run_with(world.dedup().max_crashes(1), &[30 * SECOND], 60 * SECOND).await;
    assert_eq!((report.deferred, report.dead_lettered), (0, 1), "{report}");
    let letter = &world.broker.records("dead")[0];
    assert_eq!(letter.headers().get_str("dead-letter-reason"), Some("attempts-exhausted"));
    assert!(world.dead()[0].1.contains("process died 1 times"), "{:?}", world.dead());
}

#[test]
fn what_cannot_be_read_is_not_parked() {
    let parking = DedupLayer::new(MemoryStore::new(), "c").parking();
    let message = || Message::builder().payload("x").id("a0").key("a");
    assert!(parking.seat(&message().build(), SECOND).is_some());
    let broken = message().defect(Defect::new("no text", Vec::new())).build();
    assert!(parking.seat(&broken, SECOND).is_none(), "its copy would look as if it were whole");
}

#[tokio::test(start_paused = true)]
async fn without_delays_what_was_parked_gives_its_place_up() {
    let world = World::new();
    for n in 0..3 {
        world.send("a", &format!("a{n}")).await;
    }
    world.run_with(world.dedup(), &[30 * SECOND], 10 * SECOND).await;
    assert_eq!((world.done().len(), world.parked("a")), (0, 3));
    // Delayed retry is switched off; the third fails for good.
    world.send_payload("a3", "x").await;
    world.run_with(world.dedup(), &[], 60 * SECOND).await;
    assert_eq!((world.done().len(), world.parked("a")), (4, 0));
    world.send("a", "a4").await;
    world.run_with(world.dedup(), &[30 * SECOND], 10 * SECOND).await;
    assert_eq!(world.done().last().map(String::as_str), Some("a4"), "the key is free");
}

#[tokio::test(start_paused = true)]
async fn without_delays_a_dead_letter_gives_its_place_up() {
    let world = World::new();
    world.send("a", "a0").await;
    world.run_with(world.dedup(), &[30 * SECOND], 10 * SECOND).await;
    sleep(60 * SECOND).await;
    let dedup = world.dedup();
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(world.broker.publisher(), "dead"))
        .layer(layer(&world.broker).delays([]).parking(dedup.parking()))
        .layer(dedup)
        .service(service_fn(|_: Message| async { Err::<(), _>(Failure::permanent("no")) }));
    let consumer = Consumer::new(world.broker.source("g", ["t"]), stack).ordering(Ordering::Key);
    let report = consumer.stop_when_idle(10 * SECOND).run().await.unwrap();
    assert_eq!((report.dead_lettered, world.parked("a")), (1, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_in_another_topic_is_another_key() {
    let world = World::new();
    world.broker.create_topic("u", 1);
    let dedup = world.dedup();
    let done = world.done.clone();
    let stack = ServiceBuilder::new()
        .layer(layer(&world.broker).parking(dedup.parking()))
        .layer(dedup)
        .service(service_fn(move |message: Message| {
            let failure = first_is_down(&id(&message), message.attempt());
            if failure.is_none() {
                done.lock().unwrap().push(id(&message));
            }
            async move { failure.map_or(Ok(()), Err) }
        }));
    let consumer = Consumer::new(world.broker.source("g", ["t", "u"]), stack).ordering(Ordering::Key);
    let run = tokio::spawn(consumer.stop_when_idle(60 * SECOND).run());
    world.send("a", "a0").await;
    sleep(SECOND).await;
    world.send("a", "a1").await;
    let other = Message::builder().payload("x").id("u0").key("a").build();
    world.broker.publisher().publish(Outgoing::new("u", other)).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(world.done(), ["u0"]);
    run.await.unwrap().unwrap();
    assert_eq!((world.done(), world.parked("a")), (["u0", "a0", "a1"].map(str::to_owned).to_vec(), 0));
}

#[tokio::test(start_paused = true)]
async fn with_bypass_an_outage_of_the_store_stops_nothing() {
    let world = World::new();
    world.store.set_down(true);
    for n in 0..3 {
        world.send("a", &format!("b{n}")).await;
    }
    let delays = [30 * SECOND];
    let run = world.run_with(world.dedup().on_outage(OnOutage::Bypass), &delays, 10 * SECOND);
    let report = tokio::time::timeout(60 * SECOND, run).await.expect("it ends");
    assert_eq!((world.done().len(), report.processed), (3, 3), "{report}");
}
