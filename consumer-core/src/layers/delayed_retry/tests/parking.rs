//! Later messages of a key behind one that waits.

use super::*;
use crate::{
    dedup::{
        Claim, ClaimReply, ClaimRequest, DedupStore, MissingKey, ParkReply, ParkRequest, RenewRequest,
        Renewal, Resolution, Resolved, StoreError, StoreKey,
    },
    memory::MemorySource,
};

/// Ids as their handlers succeed, in their order.
pub(super) type Done = Arc<Mutex<Vec<String>>>;

pub(super) struct World {
    pub(super) broker: MemoryBroker,
    pub(super) store: MemoryStore,
    pub(super) done: Done,
    started: Instant,
}

pub(super) fn id(message: &Message) -> String {
    String::from_utf8(message.id().unwrap().to_vec()).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        let broker = MemoryBroker::new();
        broker.create_topic("t", 1);
        broker.create_topic("dead", 1);
        Self { broker, store: MemoryStore::new(), done: Done::default(), started: Instant::now() }
    }

    pub(super) async fn send(&self, key: &str, id: &str) {
        let message = Message::builder().payload("x").id(id.to_owned()).key(key.to_owned()).build();
        self.broker.publisher().publish(Outgoing::new("t", message)).await.unwrap();
    }

    /// Fails as `fail` says for an id and attempt.
    pub(super) fn consumer<F: Fn(&str, u32) -> Option<Failure> + Clone + Send + Sync + 'static>(
        &self,
        limit: u32,
        fail: F,
    ) -> Consumer<MemorySource, impl Stack + use<F>> {
        let dedup = DedupLayer::new(self.store.clone(), "c");
        let delayed = layer(&self.broker).parking(dedup.parking().limit(limit));
        let done = self.done.clone();
        let stack = ServiceBuilder::new()
            .layer(DeadLetterLayer::new(self.broker.publisher(), "dead"))
            .layer(delayed)
            .layer(dedup)
            .service(service_fn(move |message: Message| {
                let failure = fail(&id(&message), message.attempt());
                if failure.is_none() {
                    done.lock().unwrap().push(id(&message));
                }
                async move { failure.map_or(Ok(()), Err) }
            }));
        Consumer::new(self.broker.source("g", ["t"]), stack).ordering(Ordering::Key)
    }

    pub(super) fn run(&self, limit: u32, fail: fn(&str, u32) -> Option<Failure>) -> JoinHandle<Report> {
        let consumer = self.consumer(limit, fail).stop_when_idle(700 * SECOND);
        tokio::spawn(async move { consumer.run().await.unwrap() })
    }

    pub(super) fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }

    pub(super) fn parked(&self, key: &str) -> usize {
        assert!(self.started.elapsed() < 3600 * SECOND, "in the end the store forgets who waits");
        self.store.parked(&StoreKey::new("c".into(), format!("t\0{key}").into())).len()
    }

    pub(super) fn dead(&self) -> Vec<(String, String)> {
        let error = |letter: &Message| letter.headers().get_str("dead-letter-error").unwrap().to_owned();
        self.broker.records("dead").iter().map(|letter| (id(letter), error(letter))).collect()
    }
}

pub(super) fn first_is_down(id: &str, attempt: u32) -> Option<Failure> {
    (id == "a0" && attempt == 1).then(|| Failure::transient("down"))
}

#[tokio::test(start_paused = true)]
async fn fm22_later_messages_of_a_key_wait_behind_its_delayed_retry_and_other_keys_go_on() {
    let world = World::new();
    let run = world.run(1000, first_is_down);
    for n in 0..3 {
        world.send("a", &format!("a{n}")).await;
        world.send("b", &format!("b{n}")).await;
    }
    sleep(SECOND).await;
    assert_eq!(world.done(), ["b0", "b1", "b2"], "the other key is not held up");
    assert_eq!((world.parked("a"), world.parked("b")), (3, 0));
    sleep(70 * SECOND).await;
    assert_eq!(world.done()[3..], ["a0", "a1", "a2"]);
    assert_eq!(world.parked("a"), 0);
    // In the free key nothing waits.
    world.send("a", "a3").await;
    sleep(SECOND).await;
    assert_eq!(world.done().len(), 7);
    let report = run.await.unwrap();
    assert_eq!((report.processed, report.deferred, report.retried), (7, 3, 1), "{report}");
    // Nobody looks at it without need.
    assert_eq!(world.broker.records("t")[6].headers().get_str("retry-attempt"), Some("2"));
    for parked in &world.broker.records("t")[7..9] {
        let said = |name: &str| parked.headers().get_str(name);
        assert_eq!(
            (said("retry-attempt"), said("retry-round"), said("retry-first-failed-at")),
            (None, None, None)
        );
        assert!(said("retry-not-before").is_some() && said("retry-offset").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_beyond_the_limit_is_dead_lettered_and_says_why() {
    let world = World::new();
    let run = world.run(2, first_is_down);
    for n in 0..4 {
        world.send("a", &format!("a{n}")).await;
    }
    let report = run.await.unwrap();
    assert_eq!(world.done(), ["a0", "a1"]);
    let dead = world.dead();
    assert_eq!(dead.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a2", "a3"]);
    assert!(dead[0].1.contains("2 messages of this key wait"), "{}", dead[0].1);
    let letter = &world.broker.records("dead")[0];
    let said = |name: &str| letter.headers().get_str(name).map(str::to_owned);
    assert_eq!(said("dead-letter-reason").as_deref(), Some("permanent"));
    assert_eq!(
        (said("dead-letter-attempts").as_deref(), said("dead-letter-consumer").as_deref()),
        (Some("0"), Some("c"))
    );
    assert_eq!((report.dead_lettered, report.processed, world.parked("a")), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_parked_message_that_fails_for_good_lets_the_next_one_have_its_turn() {
    let world = World::new();
    let run = world.run(1000, |id, attempt| match id {
        // Uses up both delays.
        "a0" => Some(Failure::transient("down")),
        "a1" => Some(Failure::permanent("no")),
        "a2" if attempt < 3 => Some(Failure::transient("down")),
        _ => None,
    });
    for n in 0..4 {
        world.send("a", &format!("a{n}")).await;
    }
    sleep(320 * SECOND).await;
    assert_eq!((world.done(), world.parked("a")), (vec![], 4), "a0 waits for its last attempt");
    run.await.unwrap();
    assert_eq!(world.done(), ["a2", "a3"]);
    let dead: Vec<_> = world.dead().into_iter().map(|(id, _)| id).collect();
    assert_eq!((dead, world.parked("a")), (vec!["a0".to_owned(), "a1".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_refused_gives_its_place_up_with_the_dead_letter() {
    // The copy of the first one, then that of the parked one.
    for (passed, dead) in [(0, "a0"), (1, "a1")] {
        let world = World::new();
        world.send("a", "a0").await;
        let run = if passed == 0 {
            world.broker.fail_next_publishes(1, PublishFault::Refused);
            world.run(1000, first_is_down)
        } else {
            let run = world.run(1000, first_is_down);
            sleep(SECOND).await;
            world.broker.set_max_message_bytes("t", 1000);
            let large = Message::builder().payload(vec![0; 980]).id("a1").key("a").build();
            world.broker.publisher().publish(Outgoing::new("t", large)).await.unwrap();
            run
        };
        sleep(SECOND).await;
        world.send("a", "a2").await;
        let report = run.await.unwrap();
        let letters: Vec<_> = world.dead().into_iter().map(|(id, _)| id).collect();
        assert_eq!((letters, report.dead_lettered), (vec![dead.to_owned()], 1));
        assert_eq!(world.done().last().map(String::as_str), Some("a2"));
        assert_eq!(world.parked("a"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_is_waited_out_and_nothing_is_acked_meanwhile() {
    let world = World::new();
    let consumer = world.consumer(1000, first_is_down);
    let run = tokio::spawn(consumer.stop_when_idle(100 * SECOND).run());
    world.send("a", "a0").await;
    sleep(SECOND).await;
    world.send("a", "a1").await;
    sleep(SECOND).await;
    let before = world.broker.committed("g", "t", 0);
    world.store.set_down(true);
    world.send("a", "a2").await;
    sleep(60 * SECOND).await;
    assert_eq!((world.broker.committed("g", "t", 0), world.done().len()), (before, 0));
    world.store.set_down(false);
    run.await.unwrap().unwrap();
    assert_eq!(world.done(), ["a0", "a1", "a2"]);
    assert!(world.dead().is_empty());
}

/// Of the questions about parked keys it loses the answer to the first, refuses the third, and so on.
#[derive(Clone)]
struct Forgetful(MemoryStore, Arc<Mutex<usize>>);

impl DedupStore for Forgetful {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.0.claim(request)
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        self.0.resolve(claim, resolution, lifetime)
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        self.0.renew(requests)
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        let mut asked = self.1.lock().unwrap();
        *asked += 1;
        let (is_lost, is_refused) = (*asked % 4 == 1, *asked % 4 == 3);
        let answer = (!is_refused).then(|| self.0.park(request));
        async move {
            match answer {
                Some(answer) if !is_lost => answer.await,
                _ => Err(StoreError::new("no answer")),
            }
        }
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.0.flush()
    }
}

#[tokio::test(start_paused = true)]
async fn questions_without_an_answer_change_no_order() {
    let world = World::new();
    let store = Forgetful(world.store.clone(), Arc::default());
    let dedup = DedupLayer::new(store, "c");
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
    let consumer = Consumer::new(world.broker.source("g", ["t"]), stack).ordering(Ordering::Key);
    let run = tokio::spawn(consumer.stop_when_idle(100 * SECOND).run());
    for n in 0..5 {
        world.send("a", &format!("a{n}")).await;
    }
    run.await.unwrap().unwrap();
    assert_eq!(world.done(), ["a0", "a1", "a2", "a3", "a4"]);
    assert_eq!(world.parked("a"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_original_leaves_the_place_to_its_copy() {
    let world = World::new();
    let run = world.run(1000, first_is_down);
    world.send("a", "a0").await;
    sleep(SECOND).await;
    // As after a lost ack.
    world.send("a", "a0").await;
    sleep(SECOND).await;
    assert_eq!(world.parked("a"), 1);
    world.send("a", "a1").await;
    let report = run.await.unwrap();
    assert_eq!(world.done(), ["a0", "a1"]);
    assert_eq!((report.duplicates, world.parked("a")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_an_idempotency_key_nothing_is_parked_or_delayed() {
    let world = World::new();
    let dedup = DedupLayer::new(world.store.clone(), "c").missing_key(MissingKey::Process);
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(world.broker.publisher(), "dead"))
        .layer(layer(&world.broker).parking(dedup.parking()))
        .layer(dedup)
        .service(service_fn(|_: Message| async { Err::<(), _>(Failure::transient("down")) }));
    let bare = Message::builder().payload("x").key("a").build();
    world.broker.publisher().publish(Outgoing::copy("t", bare)).await.unwrap();
    let consumer = Consumer::new(world.broker.source("g", ["t"]), stack).ordering(Ordering::Key);
    let report = consumer.stop_when_idle(10 * SECOND).run().await.unwrap();
    assert_eq!((report.dead_lettered, report.deferred), (1, 0));
    assert_eq!(world.store.stats().parks, 0);
}

#[tokio::test(start_paused = true)]
async fn a_discarded_message_gives_its_place_up() {
    let world = World::new();
    let dedup = DedupLayer::new(world.store.clone(), "c");
    let done = world.done.clone();
    let stack = ServiceBuilder::new()
        .layer(layer(&world.broker).parking(dedup.parking()))
        .layer(dedup)
        .service(service_fn(move |message: Message| {
            let is_bad = id(&message) == "a0";
            if !is_bad {
                done.lock().unwrap().push(id(&message));
            }
            async move { if is_bad { Err(Failure::transient("down")) } else { Ok(()) } }
        }));
    world.send("a", "a0").await;
    world.send("a", "a1").await;
    let consumer =
        Consumer::new(world.broker.source("g", ["t"]), stack).ordering(Ordering::Key).discard_after(2);
    let report = consumer.stop_when_idle(700 * SECOND).run().await.unwrap();
    assert_eq!((report.discarded, report.processed, world.parked("a")), (1, 1, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_run_without_an_order_asks_nobody() {
    let world = World::new();
    world.send("a", "a0").await;
    world.send("a", "a1").await;
    let consumer = world.consumer(1000, first_is_down).ordering(Ordering::None);
    let report = consumer.stop_when_idle(40 * SECOND).run().await.unwrap();
    assert_eq!(world.done(), ["a1", "a0"]);
    assert_eq!((report.deferred, world.store.stats().parks), (1, 0));
}
