//! Topics and queues as a test sees them: what it puts in and what it finds.

use std::{future::poll_fn, time::Duration};

use consumer::{
    BoxSource, Demand, DynPublisher, Event, Message, Outgoing, Publisher, Source,
    amqp::{AmqpAdmin, AmqpPublisher, AmqpSource, Queue},
    kafka::{KafkaAdmin, KafkaPublisher, KafkaSource},
};
use xtask::servers::{Kafka, RabbitMq, shared_kafka, shared_rabbitmq, shared_redis};

use crate::common::unique;

/// What a scenario runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broker {
    Kafka,
    RabbitMq,
}

/// Makes each scenario a test on either broker: `kafka::…` and `rabbitmq::…`.
macro_rules! on_both_brokers {
    ($($scenario:ident),+ $(,)?) => {
        mod kafka { $crate::topic::on_both_brokers!(@tests Kafka: $($scenario),+); }
        mod rabbitmq { $crate::topic::on_both_brokers!(@tests RabbitMq: $($scenario),+); }
    };
    (@tests $broker:ident: $($scenario:ident),+) => {
        $(
            #[test]
            #[ignore = "needs servers: cargo xtask test"]
            fn $scenario() {
                super::$scenario($crate::topic::Broker::$broker);
            }
        )+
    };
}
pub(crate) use on_both_brokers;

impl Broker {
    /// The URL of the one that tests share.
    pub(crate) fn shared(self) -> String {
        match self {
            Self::Kafka => format!("kafka://{}", shared_kafka()),
            Self::RabbitMq => shared_rabbitmq(),
        }
    }

    /// One of the test's own.
    pub(crate) fn start(self) -> Server {
        match self {
            Self::Kafka => Server::Kafka(Kafka::start().unwrap()),
            Self::RabbitMq => Server::RabbitMq(RabbitMq::start().unwrap()),
        }
    }
}

/// A broker that a test may stop.
#[derive(Debug)]
pub(crate) enum Server {
    Kafka(Kafka),
    RabbitMq(RabbitMq),
}

impl Server {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Kafka(kafka) => format!("kafka://{}", kafka.bootstrap()),
            Self::RabbitMq(rabbitmq) => rabbitmq.url(),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        match self {
            Self::Kafka(kafka) => kafka.kill(),
            Self::RabbitMq(rabbitmq) => {
                rabbitmq.sync().unwrap();
                rabbitmq.kill();
            }
        }
    }

    /// It keeps its connections and answers nothing.
    pub(crate) fn pause(&self) {
        match self {
            Self::Kafka(kafka) => kafka.pause(),
            Self::RabbitMq(rabbitmq) => rabbitmq.pause(),
        }
    }

    pub(crate) fn start_again(&self) {
        match self {
            Self::Kafka(kafka) => kafka.start_again().unwrap(),
            Self::RabbitMq(rabbitmq) => rabbitmq.start_again().unwrap(),
        }
    }
}

/// A topic or queue of the test's own, with the arguments that name it and its store.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) store: String,
    ordered: bool,
}

impl Topic {
    /// On the servers that tests share.
    pub(crate) fn shared(broker: Broker, name: &str) -> Self {
        Self::on(&broker.shared(), &shared_redis(), name)
    }

    pub(crate) fn on(url: &str, redis: &str, name: &str) -> Self {
        Self { url: url.to_owned(), name: unique(name), store: redis.to_owned(), ordered: false }
    }

    /// What keeps an order: any topic of Kafka, and a queue of RabbitMQ that says so.
    pub(crate) fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Its bootstrap address, if it is on Kafka.
    fn kafka(&self) -> Option<&str> {
        self.url.strip_prefix("kafka://")
    }

    /// `command` on this topic; the group is named as the topic.
    pub(crate) fn arguments(&self, command: &str) -> Vec<String> {
        let mut arguments = vec![command.to_owned(), "--broker".to_owned(), self.url.clone()];
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

    /// As `orders` declares it.
    fn queue(&self) -> Queue {
        let queue = Queue::quorum(&self.name);
        if self.ordered { queue.single_active_consumer() } else { queue }
    }

    /// Creates the topic.
    pub(crate) fn create(&self) {
        block_on(async {
            match self.kafka() {
                Some(kafka) => drop(admin(kafka).ensure_topic(&self.name, 4, &[]).await.unwrap()),
                None => self.rabbitmq().ensure_queue(self.queue()).await.unwrap(),
            }
        });
    }

    /// Creates the topic and publishes these messages, in order.
    pub(crate) fn publish(&self, messages: Vec<Message>) {
        self.create();
        self.publish_as_it_is(messages);
    }

    /// Publishes these messages, in order, to what is there.
    pub(crate) fn publish_as_it_is(&self, messages: Vec<Message>) {
        block_on(async {
            let publisher = match self.kafka() {
                Some(kafka) => DynPublisher::new(KafkaPublisher::builder(kafka).build().unwrap()),
                None => DynPublisher::new(AmqpPublisher::builder(&self.url).build().unwrap()),
            };
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
        block_on(async {
            match self.kafka() {
                Some(kafka) => from_kafka(kafka, &self.dead()).await,
                None => from_rabbitmq(&self.url, &self.dead()).await,
            }
        })
    }

    /// Whether there is such a topic or queue, as `orders` makes it.
    pub(crate) fn exists(&self, name: &str) -> bool {
        block_on(async {
            match self.kafka() {
                Some(kafka) => admin(kafka).partitions(name).await.unwrap() == Some(4),
                None => self.rabbitmq().depth(name).await.unwrap().is_some(),
            }
        })
    }

    /// To look at queues.
    pub(crate) fn rabbitmq(&self) -> AmqpAdmin {
        AmqpAdmin::new(&self.url).unwrap()
    }
}

fn admin(kafka: &str) -> KafkaAdmin {
    KafkaAdmin::new(kafka).unwrap()
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Everything in a topic, until nothing more comes.
async fn from_kafka(broker: &str, topic: &str) -> Vec<Message> {
    let source = KafkaSource::builder(broker).group(unique("reader")).topic(topic).build().unwrap();
    read(Box::new(source), usize::MAX).await
}

/// Everything in a queue, which goes back into it.
async fn from_rabbitmq(url: &str, queue: &str) -> Vec<Message> {
    const MOST: usize = 2_000;
    let depth = AmqpAdmin::new(url).unwrap().depth(queue).await.unwrap().expect("the queue is there");
    assert!(depth < MOST as u64, "more dead letters than are read without an ack");
    let mut source = AmqpSource::builder(url).queue(Queue::dead_letters(queue)).build().unwrap();
    source.configure(Demand::new(MOST)).unwrap();
    read(Box::new(source), depth as usize).await
}

/// Reads so many messages, or until nothing more comes.
async fn read(mut source: BoxSource, count: usize) -> Vec<Message> {
    let (mut read, mut assigned) = (Vec::new(), false);
    while read.len() < count {
        let mut delivered = Vec::new();
        let event = poll_fn(|cx| source.poll_event(cx, 1000, &mut delivered));
        let patience = Duration::from_secs(if assigned { 2 } else { 30 });
        match tokio::time::timeout(patience, event).await {
            Ok(event) => assigned |= event.unwrap() == Event::Connected,
            Err(_) => break,
        }
        read.extend(delivered.into_iter().map(|delivery| delivery.message));
    }
    read
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
