//! Messages under the id of one that has failed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_admin::Broker;
use consumer_core::{
    Consumer, DeadLetterLayer, DedupLayer, DynPublisher, Failure, Message, Outgoing, PublishError, Publisher,
    Report, handler::handler, runtime::Health,
};
use dedup_redis::RedisStore;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tower::ServiceBuilder;

use super::{
    child::source,
    world::{KAFKA, RABBITMQ, World},
};

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm33_kafka_holds_a_duplicate_while_the_dead_letter_is_on_its_way() {
    duplicate_waits_for_the_dead_letter(KAFKA);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm33_rabbitmq_holds_a_duplicate_while_the_dead_letter_is_on_its_way() {
    duplicate_waits_for_the_dead_letter(RABBITMQ);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm38_kafka_takes_a_corrected_message_under_the_id_of_a_dead_one() {
    corrected_is_welcome(KAFKA);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm38_rabbitmq_takes_a_corrected_message_under_the_id_of_a_dead_one() {
    corrected_is_welcome(RABBITMQ);
}

/// Publishes when it is let.
#[derive(Clone)]
struct Held(DynPublisher, Arc<Semaphore>);

impl Publisher for Held {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        let Self(publisher, gate) = self.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            publisher.publish(outgoing).await
        }
    }
}

type Calls = Arc<Mutex<Vec<Vec<u8>>>>;

/// Consumes until nothing comes; payloads that say `broken` fail for good.
async fn consume(world: &World, gate: Arc<Semaphore>, calls: Calls, health: impl FnOnce(Health)) -> Report {
    let (source, publisher) = source(&world.url, &world.topic);
    let store = RedisStore::connect(&*world.redis).await.unwrap();
    let confirm = move |message: Message| {
        calls.lock().unwrap().push(message.payload().to_vec());
        async move {
            match &message.payload()[..] {
                b"broken" => Err(Failure::permanent("it is broken")),
                _ => Ok(()),
            }
        }
    };
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(Held(publisher, gate), world.dead()))
        .layer(DedupLayer::new(store, &*world.topic))
        .service(handler(confirm));
    let consumer = Consumer::new(source, stack).stop_when_idle(Duration::from_secs(4));
    health(consumer.health());
    consumer.run().await.unwrap()
}

fn duplicate_waits_for_the_dead_letter(kind: &str) {
    let world = World::new(kind);
    world.runtime.block_on(async {
        let publisher = Broker::from_url(&*world.url).unwrap().publisher().unwrap();
        for _ in 0..2 {
            publisher.publish(world.outgoing(0, "broken")).await.unwrap();
        }
        let (gate, calls) = (Arc::new(Semaphore::new(0)), Calls::default());
        let mut watching = None;
        let watch = |health: Health| {
            let (gate, calls) = (gate.clone(), calls.clone());
            let count = move || calls.lock().unwrap().len();
            watching = Some(tokio::spawn(async move {
                let both = async {
                    // One executes, as the other does until it waits.
                    while count() == 0 || health.status().held < 2 || health.status().executing > 1 {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                let came_about = timeout(Duration::from_secs(30), both).await.is_ok();
                let calls = count();
                // Whatever is wrong: the consumer is to end.
                gate.add_permits(9);
                (came_about, calls)
            }));
        };
        let report = consume(&world, gate.clone(), calls.clone(), watch).await;
        let watched = watching.unwrap().await.unwrap();
        assert_eq!(watched, (true, 1), "both are held, one waits, and the handler ran once");
        assert_eq!((report.dead_lettered, report.duplicates), (1, 1), "{report:?}");
        assert_eq!(calls.lock().unwrap().len(), 1);
        assert_eq!(gate.available_permits(), 8, "one dead letter");
    });
    assert_eq!(world.dead_letters().len(), 1);
}

fn corrected_is_welcome(kind: &str) {
    let world = World::new(kind);
    let open = || Arc::new(Semaphore::new(9));
    world.runtime.block_on(async {
        let publisher = Broker::from_url(&*world.url).unwrap().publisher().unwrap();
        let calls = Calls::default();
        for (payload, dead, processed) in [("broken", 1, 0), ("mended", 0, 1)] {
            publisher.publish(world.outgoing(0, payload)).await.unwrap();
            let report = consume(&world, open(), calls.clone(), drop).await;
            assert_eq!((report.dead_lettered, report.processed), (dead, processed), "{payload}: {report:?}");
        }
        assert_eq!(*calls.lock().unwrap(), [b"broken", b"mended"]);
        // Redriven now, the dead one is another payload under an id whose effect has happened.
        let letters = Broker::from_url(&*world.url).unwrap().dead_letters(&world.dead()).unwrap();
        let (filter, how) = (consumer_admin::Filter::default(), consumer_admin::Redrive::default());
        let redriven =
            consumer_admin::redrive(letters.open().await.unwrap(), publisher, &filter, &how, |_| {});
        assert_eq!(redriven.await.unwrap().redriven, 1);
        let report = consume(&world, open(), calls.clone(), drop).await;
        assert_eq!(
            (report.dead_lettered, report.duplicates),
            (1, 0),
            "a conflict, and never acked in silence"
        );
        assert_eq!(calls.lock().unwrap().len(), 2);
    });
    assert_eq!(world.dead_letters(), [("m-0".to_owned(), 1)]);
}
