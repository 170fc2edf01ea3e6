//! What the tests against real servers share.
#![allow(dead_code)] // no test uses all of it

pub(crate) mod run;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use consumer_amqp::{AmqpAdmin, AmqpPublisher, AmqpSource, AmqpSourceBuilder, Queue};
use consumer_core::{Delivery, Event, Message, Outgoing, Publisher};
use consumer_testing::{drive::Driven, proxy::Proxy};
use tokio::time::{sleep, timeout};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A name that no other test and no earlier run has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let id = since.as_nanos() ^ u128::from(std::process::id()) << 64;
    format!("{what}-{id}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The server behind a proxy: its URL by way of that.
pub(crate) async fn by_proxy(url: &str) -> (Proxy, String) {
    let (front, rest) = url.rsplit_once(':').unwrap();
    let (port, vhost) = rest.split_once('/').unwrap();
    let port: u16 = port.parse().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], port)).await.unwrap();
    let url = format!("{front}:{}/{vhost}", proxy.port());
    (proxy, url)
}

/// Waits until so many are ready; the broker tells nobody when.
pub(crate) async fn until_depth(url: &str, queue: &str, depth: u64) {
    let waiting = async {
        while admin(url).depth(queue).await.unwrap() != Some(depth) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("there are never {depth} in {queue}"));
}

/// A quorum queue of a name that is new.
pub(crate) async fn queue(url: &str) -> String {
    let name = unique("q");
    admin(url).ensure_queue(Queue::quorum(&name)).await.unwrap();
    name
}

pub(crate) fn admin(url: &str) -> AmqpAdmin {
    AmqpAdmin::new(url).unwrap()
}

pub(crate) fn publisher(url: &str) -> AmqpPublisher {
    AmqpPublisher::builder(url).build().unwrap()
}

/// Publishes `numbers` with themselves as payload, key and id.
pub(crate) async fn produce(publisher: &AmqpPublisher, queue: &str, numbers: impl IntoIterator<Item = u32>) {
    let sent: Vec<_> = numbers
        .into_iter()
        .map(|n| {
            let text = n.to_string();
            let message =
                Message::builder().payload(text.clone()).key(text.clone()).header("message-id", text);
            publisher.publish(Outgoing::new(queue, message.build()))
        })
        .collect();
    for answer in sent {
        answer.await.unwrap();
    }
}

pub(crate) fn number(message: &Message) -> u32 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

pub(crate) fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    deliveries.iter().map(|delivery| number(&delivery.message)).collect()
}

pub(crate) fn consumer(url: &str, queue: &str) -> AmqpSourceBuilder {
    AmqpSource::builder(url).queue(queue)
}

pub(crate) fn drive(builder: AmqpSourceBuilder) -> Driven<AmqpSource> {
    log();
    Driven::new(builder.build().unwrap(), LIMIT)
}

pub(crate) async fn connected(member: &mut Driven<AmqpSource>) {
    assert!(member.wait_for(|events| events.contains(&Event::Connected)).await, "it connects in time");
}

/// Shows the log of a failed test where `RUST_LOG` asks for it.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

/// Everything that is ready in the queue, taken out of it, when it holds nothing back for others.
pub(crate) async fn contents(url: &str, queue: &str) -> Vec<Message> {
    let depth = admin(url).depth(queue).await.unwrap().expect("the queue exists");
    let described = if queue.contains("dead") { Queue::dead_letters(queue) } else { Queue::quorum(queue) };
    let mut reader = drive(AmqpSource::builder(url).queue(described).accept_foreign_queue());
    let mut messages = Vec::new();
    for _ in 0..depth {
        let got = reader.take(1, "what is in the queue").await;
        reader.ack(&got);
        messages.extend(got.into_iter().map(|delivery| delivery.message));
    }
    reader.close().await;
    messages
}
