//! A small runtime for the tests: it polls a source and settles as it is told.
#![allow(dead_code)] // no test uses all of it

pub(crate) mod letters;
pub(crate) mod raw;

use std::{
    future::poll_fn,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use consumer_core::{Delivery, Event, Message, Origin, Outgoing, Publisher, Settlement, Source, SourceError};
use consumer_kafka::{KafkaAdmin, KafkaPublisher, KafkaSource, KafkaSourceBuilder};
use tokio::time::timeout;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A name that no other test and no earlier run has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = uuid();
    format!("{what}-{id}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn uuid() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_nanos() ^ u128::from(std::process::id()) << 64
}

pub(crate) async fn topic(brokers: &str, partitions: u32) -> String {
    let name = unique("t");
    let admin = KafkaAdmin::new(brokers).unwrap();
    assert!(admin.ensure_topic(&name, partitions, &[("max.message.bytes", "4194304")]).await.unwrap());
    name
}

pub(crate) fn publisher(brokers: &str) -> KafkaPublisher {
    KafkaPublisher::builder(brokers).build().unwrap()
}

/// Publishes `numbers` with themselves as payload and key.
pub(crate) async fn produce(publisher: &KafkaPublisher, topic: &str, numbers: impl IntoIterator<Item = u32>) {
    let sent: Vec<_> = numbers
        .into_iter()
        .map(|n| {
            let message = Message::builder().payload(n.to_string()).key(n.to_string()).build();
            publisher.publish(Outgoing::new(topic, message))
        })
        .collect();
    for answer in sent {
        answer.await.unwrap();
    }
}

pub(crate) fn number(message: &Message) -> u32 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

pub(crate) fn place(message: &Message) -> (u32, u64) {
    match message.origin() {
        Origin::Log { partition, offset, .. } => (*partition, *offset),
        other => panic!("not from a log: {other:?}"),
    }
}

pub(crate) fn member(brokers: &str, topic: &str, group: &str) -> KafkaSourceBuilder {
    KafkaSource::builder(brokers).group(group).topic(topic).property("session.timeout.ms", "6000")
}

/// Shows the log of a failed test where `RUST_LOG` asks for it.
fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

/// A source with what it has delivered.
pub(crate) struct Member {
    pub(crate) source: KafkaSource,
    pub(crate) got: Vec<Delivery>,
    pub(crate) events: Vec<Event>,
}

impl Member {
    pub(crate) fn new(builder: KafkaSourceBuilder) -> Self {
        log();
        Self { source: builder.build().unwrap(), got: Vec::new(), events: Vec::new() }
    }

    /// The next event; deliveries are in `got` then.
    pub(crate) async fn event(&mut self, room: usize) -> Result<Event, SourceError> {
        let event = poll_fn(|cx| self.source.poll_event(cx, room, &mut self.got)).await?;
        if event != Event::Delivered {
            self.events.push(event);
        }
        Ok(event)
    }

    pub(crate) async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let wait = async {
            loop {
                let event = self.event(0).await.unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        timeout(LIMIT, wait).await.expect("the event in time")
    }

    pub(crate) async fn connected(&mut self) {
        self.until(|event| *event == Event::Connected).await;
    }

    /// At least `count` deliveries, releasing what ends meanwhile.
    pub(crate) async fn receive(&mut self, count: usize) -> Vec<Delivery> {
        let wait = async {
            while self.got.len() < count {
                if let Event::Closing { scope, .. } = self.event(count - self.got.len()).await.unwrap() {
                    self.source.release(scope);
                }
            }
        };
        timeout(LIMIT, wait).await.expect("the deliveries in time");
        std::mem::take(&mut self.got)
    }

    /// Whatever comes within `time`.
    pub(crate) async fn receive_for(&mut self, time: Duration) -> Vec<Delivery> {
        let wait = async {
            loop {
                if let Event::Closing { scope, .. } = self.event(1000).await.unwrap() {
                    self.source.release(scope);
                }
            }
        };
        let _ = timeout(time, wait).await;
        std::mem::take(&mut self.got)
    }

    pub(crate) fn ack(&mut self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            self.source.settle(delivery.tag, Settlement::Ack);
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), SourceError> {
        timeout(LIMIT, poll_fn(|cx| self.source.poll_flush(cx))).await.expect("the flush in time")
    }

    pub(crate) async fn close(mut self) -> Result<(), SourceError> {
        timeout(LIMIT, poll_fn(|cx| self.source.poll_close(cx))).await.expect("the close in time")
    }
}

/// The numbers delivered to a fresh member of the group until nothing comes for a while: what is not committed.
pub(crate) async fn left(brokers: &str, topic: &str, group: &str) -> Vec<u32> {
    let mut member = Member::new(member(brokers, topic, group));
    member.connected().await;
    let mut all = Vec::new();
    loop {
        let got = member.receive_for(Duration::from_millis(1500)).await;
        if got.is_empty() {
            break;
        }
        all.extend(got.iter().map(|d| number(&d.message)));
    }
    all.sort_unstable();
    all
}

/// All that the topic holds, read by a group of its own.
pub(crate) async fn contents(brokers: &str, topic: &str, count: usize) -> Vec<Message> {
    let mut member = Member::new(member(brokers, topic, &unique("reader")));
    let got = member.receive(count).await;
    got.into_iter().map(|delivery| delivery.message).collect()
}
