//! The process that is killed: a consumer or a redrive, with a fuse in it.

use std::{env, fs::OpenOptions, io::Write, time::Duration};

use consumer_admin::{Broker, Filter, Redrive, redrive};
use consumer_core::{
    BoxSource, Consumer, DeadLetterLayer, DedupLayer, DelayedRetryLayer, DynPublisher, Failure, Message,
    dead_letters::Letters, dedup::DynStore, handler::handler,
};
use dedup_redis::RedisStore;
use tower::ServiceBuilder;

use super::fuse::{Fuse, Fused, Step};

fn variable(name: &str) -> String {
    env::var(format!("WAYS_BACK_{name}")).unwrap()
}

/// Run by the tests as a process of its own, and nothing by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other tests"]
async fn process() {
    let Ok(work) = env::var("WAYS_BACK_WORK") else { return };
    let fuse = Fuse::new(Step::parse(&variable("STEP")));
    match &*work {
        "redrive" => send_back(fuse).await,
        work => consume(work.to_owned(), fuse).await,
    }
}

pub(crate) fn source(url: &str, topic: &str) -> (BoxSource, DynPublisher) {
    if url.starts_with("kafka") {
        let source = consumer_kafka::KafkaSource::from_url(url).group(topic).topic(topic);
        // A member that was killed is missed sooner.
        let source = source.property("session.timeout.ms", "6000");
        let source = source.delays([DELAY]).commit_every(Duration::from_millis(500)).build().unwrap();
        let publisher = DynPublisher::new(source.publisher().unwrap());
        return (Box::new(source), publisher);
    }
    let queue = consumer_amqp::Queue::quorum(topic).dead_letter(format!("{topic}.dead"));
    let source = consumer_amqp::AmqpSource::builder(url).queue(queue).build().unwrap();
    let publisher = DynPublisher::new(source.publisher().unwrap());
    (Box::new(source), publisher)
}

const DELAY: Duration = Duration::from_secs(2);
/// Longer than a lease and a delay.
const IDLE: Duration = Duration::from_secs(7);

/// `defer`: the first attempt fails, and waits at the broker. `bounce`: all fail for good. `repaired`: all succeed.
async fn consume(work: String, fuse: Fuse) {
    let (source, publisher) = source(&variable("URL"), &variable("TOPIC"));
    let store = RedisStore::connect(variable("REDIS")).await.unwrap();
    let (topic, log) = (variable("TOPIC"), variable("LOG"));
    let delays = if work == "defer" { vec![DELAY] } else { vec![] };
    let confirm = move |message: Message| {
        let (work, log) = (work.clone(), log.clone());
        async move {
            let answer = match &*work {
                "defer" if message.attempt() == 1 => Err(Failure::transient("the provider is down")),
                "bounce" => Err(Failure::permanent("no such mailbox")),
                _ => Ok(()),
            };
            let id = std::str::from_utf8(message.id().unwrap()).unwrap();
            let word = if answer.is_ok() { "ok" } else { "failed" };
            let line = format!("{id} {} {word}\n", message.attempt());
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap()
                .write_all(line.as_bytes())
                .unwrap();
            answer
        }
    };
    let publisher = Fused(publisher, fuse.clone());
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(publisher.clone(), format!("{topic}.dead")))
        .layer(DelayedRetryLayer::new(publisher).delays(delays))
        .layer(
            DedupLayer::new(Fused(DynStore::new(store), fuse.clone()), &*topic).lease(Duration::from_secs(2)),
        )
        .service(handler(confirm));
    Consumer::new(Fused(source, fuse), stack).stop_when_idle(IDLE).run().await.unwrap();
}

async fn send_back(fuse: Fuse) {
    let broker = Broker::from_url(variable("URL")).unwrap();
    let dead = broker.dead_letters(&format!("{}.dead", variable("TOPIC"))).unwrap();
    let letters: Box<dyn Letters> = Box::new(Fused(dead.open().await.unwrap(), fuse.clone()));
    let publisher = DynPublisher::new(Fused(broker.publisher().unwrap(), fuse));
    redrive(letters, publisher, &Filter::default(), &Redrive::default(), |_| {}).await.unwrap();
}
