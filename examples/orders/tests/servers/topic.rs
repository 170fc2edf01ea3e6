//! Topics as a test sees them: what it puts in and what it finds.

use std::{future::poll_fn, time::Duration};

use consumer::{
    Message, Outgoing, Publisher, Source,
    kafka::{KafkaAdmin, KafkaPublisher, KafkaSource},
};

use crate::common::unique;

/// A topic of the test's own, with the arguments that name it and its store.
pub(crate) struct Topic {
    pub(crate) broker: String,
    pub(crate) name: String,
    pub(crate) store: String,
}

impl Topic {
    /// On the servers that tests share.
    pub(crate) fn shared(name: &str) -> Self {
        Self::on(&xtask::servers::shared_kafka(), &xtask::servers::shared_redis(), name)
    }

    pub(crate) fn on(kafka: &str, redis: &str, name: &str) -> Self {
        Self { broker: kafka.to_owned(), name: unique(name), store: redis.to_owned() }
    }

    /// `command` on this topic; the group is named as the topic.
    pub(crate) fn arguments(&self, command: &str) -> Vec<String> {
        let mut arguments =
            vec![command.to_owned(), "--broker".to_owned(), format!("kafka://{}", self.broker)];
        arguments.extend(["--topic".to_owned(), self.name.clone()]);
        if command == "consume" {
            let options = ["--store", &self.store, "--group", &self.name];
            arguments.extend(options.map(str::to_owned));
        }
        arguments
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.name)
    }

    /// Creates the topic and publishes these messages, in order.
    pub(crate) fn publish(&self, messages: Vec<Message>) {
        block_on(async {
            let admin = KafkaAdmin::new(&self.broker).unwrap();
            admin.ensure_topic(&self.name, 4, &[]).await.unwrap();
            let publisher = KafkaPublisher::builder(&self.broker).build().unwrap();
            let sent: Vec<_> = messages
                .into_iter()
                .map(|message| publisher.publish(Outgoing::copy(self.name.as_str(), message)))
                .collect();
            for confirm in sent {
                confirm.await.unwrap();
            }
        });
    }

    /// All dead letters; the topic has to be there.
    pub(crate) fn dead_letters(&self) -> Vec<Message> {
        block_on(read(&self.broker, &self.dead()))
    }

    /// How many partitions a topic has.
    pub(crate) fn partitions(&self, topic: &str) -> Option<u32> {
        block_on(async { KafkaAdmin::new(&self.broker).unwrap().partitions(topic).await.unwrap() })
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Everything in a topic, until nothing more comes.
async fn read(broker: &str, topic: &str) -> Vec<Message> {
    let mut source = KafkaSource::builder(broker).group(unique("reader")).topic(topic).build().unwrap();
    let (mut read, mut assigned) = (Vec::new(), false);
    loop {
        let mut delivered = Vec::new();
        let event = poll_fn(|cx| source.poll_event(cx, 1000, &mut delivered));
        let patience = Duration::from_secs(if assigned { 2 } else { 30 });
        match tokio::time::timeout(patience, event).await {
            Ok(event) => assigned |= event.unwrap() == consumer::Event::Connected,
            Err(_) => return read,
        }
        read.extend(delivered.into_iter().map(|delivery| delivery.message));
    }
}

/// An order with this id and address, as a shop would publish it.
pub(crate) fn order(id: &str, email: &str) -> Message {
    let payload = format!(r#"{{"order_id":"order-of-{id}","email":"{email}","total":1999}}"#);
    message(id, &payload)
}

/// A message with this id and payload; its key is of the id.
pub(crate) fn message(id: &str, payload: &str) -> Message {
    Message::builder().payload(payload.to_owned()).key(format!("order-of-{id}")).id(id.to_owned()).build()
}
