//! The broker and the store of a run, which are its own, and the way around the proxies for the harness itself.

use std::time::Duration;

use clap::ValueEnum;
use consumer_amqp::{AmqpAdmin, AmqpPublisher, Queue};
use consumer_core::{DynPublisher, dead_letters::DeadLetters};
use consumer_kafka::{KafkaAdmin, KafkaPublisher};
use rdkafka::{
    ClientConfig, Offset,
    consumer::{BaseConsumer, Consumer},
    topic_partition_list::TopicPartitionList,
};
use tokio::task::block_in_place;
use xtask::servers::{Kafka, Postgres, RabbitMq, Redis};

use crate::{Fallible, history::Letter};

/// What is consumed; the group has the same name.
pub(crate) const TOPIC: &str = "orders.placed";
const DEAD: &str = "orders.placed.dead";
const PARTITIONS: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BrokerKind {
    Kafka,
    Amqp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    Redis,
    Postgres,
}

/// A broker of the run's own.
#[derive(Debug)]
pub(crate) enum Broker {
    Kafka(Kafka),
    Amqp(RabbitMq),
}

/// A store of the run's own. Either keeps what it has answered to over a SIGKILL, so no effect is repeated because the store
/// has lost its record.
#[derive(Debug)]
pub(crate) enum Store {
    Redis(Redis),
    Postgres(Postgres),
}

impl Broker {
    /// Clients are to come by `proxy`, a port of this machine.
    pub(crate) fn start(kind: BrokerKind, proxy: u16) -> Fallible<Self> {
        Ok(match kind {
            BrokerKind::Kafka => Self::Kafka(Kafka::builder().advertise(proxy).start()?),
            BrokerKind::Amqp => Self::Amqp(RabbitMq::start()?),
        })
    }

    pub(crate) fn port(&self) -> Fallible<u16> {
        Ok(match self {
            Self::Kafka(kafka) => kafka.bootstrap().rsplit(':').next().unwrap_or_default().parse()?,
            Self::Amqp(rabbitmq) => rabbitmq.port(),
        })
    }

    /// For consumers. A process that is dead or stopped is given up after some seconds, so that a run takes minutes and not hours.
    pub(crate) fn url_by(&self, proxy: u16) -> String {
        match self {
            Self::Kafka(_) => format!(
                "kafka://127.0.0.1:{proxy}?session.timeout.ms=4000&heartbeat.interval.ms=1000&reconnect.backoff.max.ms=1000"
            ),
            Self::Amqp(_) => format!("amqp://guest:guest@127.0.0.1:{proxy}/%2f?heartbeat=2"),
        }
    }

    pub(crate) fn kill(&self) {
        match self {
            Self::Kafka(kafka) => kafka.kill(),
            Self::Amqp(rabbitmq) => rabbitmq.kill(),
        }
    }

    pub(crate) fn start_again(&self) -> Fallible<()> {
        match self {
            Self::Kafka(kafka) => kafka.start_again()?,
            Self::Amqp(rabbitmq) => rabbitmq.start_again()?,
        }
        Ok(())
    }

    /// Creates what is consumed, so that the load can begin.
    pub(crate) async fn prepare(&self, ordered: bool) -> Fallible<()> {
        match self {
            Self::Kafka(kafka) => {
                KafkaAdmin::new(kafka.plain_bootstrap())?.ensure_topic(TOPIC, PARTITIONS, &[]).await?;
            }
            Self::Amqp(rabbitmq) => {
                let queue = Queue::quorum(TOPIC).dead_letter(DEAD);
                let queue = if ordered { queue.single_active_consumer() } else { queue };
                AmqpAdmin::new(rabbitmq.url())?.ensure_queue(queue).await?;
                // It would be empty after a kill that comes soon.
                rabbitmq.sync()?;
            }
        }
        Ok(())
    }

    pub(crate) fn publisher(&self) -> Fallible<DynPublisher> {
        Ok(match self {
            Self::Kafka(kafka) => {
                let builder = KafkaPublisher::builder(kafka.plain_bootstrap());
                DynPublisher::new(builder.property("reconnect.backoff.max.ms", "500").build()?)
            }
            Self::Amqp(rabbitmq) => DynPublisher::new(AmqpPublisher::builder(rabbitmq.url()).build()?),
        })
    }

    /// Messages that nobody has acked, as far as the broker has been told.
    pub(crate) async fn left(&self) -> Fallible<u64> {
        match self {
            Self::Kafka(kafka) => {
                let bootstrap = kafka.plain_bootstrap();
                tokio::task::spawn_blocking(move || lag(&bootstrap)).await?
            }
            Self::Amqp(rabbitmq) => {
                // With those that consumers hold, which a client is not told.
                let queues = block_in_place(|| rabbitmq.ctl(&["-q", "list_queues", "name", "messages"]))?;
                let mut queues = queues.lines().filter_map(|line| line.split_once('\t'));
                let (_, left) = queues.find(|(name, _)| *name == TOPIC).ok_or("the queue is gone")?;
                Ok(left.trim().parse()?)
            }
        }
    }

    pub(crate) async fn letters(&self) -> Fallible<Vec<Letter>> {
        let dead: Box<dyn DeadLetters> = match self {
            Self::Kafka(kafka) => Box::new(KafkaAdmin::new(kafka.plain_bootstrap())?.dead_letters(DEAD)),
            Self::Amqp(rabbitmq) => Box::new(AmqpAdmin::new(rabbitmq.url())?.dead_letters(DEAD)),
        };
        let mut reading = dead.open().await?;
        let mut letters = Vec::new();
        while let Some(letter) = reading.next().await? {
            letters.push(Letter {
                id: letter.id().unwrap_or_default().into_owned(),
                reason: letter.reason().to_owned(),
                error: letter.error().unwrap_or_default().into_owned(),
            });
        }
        reading.close().await?;
        Ok(letters)
    }
}

impl Store {
    pub(crate) fn start(kind: StoreKind) -> Fallible<Self> {
        Ok(match kind {
            StoreKind::Redis => Self::Redis(Redis::builder().append_only().start()?),
            StoreKind::Postgres => Self::Postgres(Postgres::start()?),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Redis(redis) => redis.port(),
            Self::Postgres(postgres) => postgres.port(),
        }
    }

    pub(crate) fn url_by(&self, proxy: u16) -> String {
        match self {
            Self::Redis(_) => format!("redis://127.0.0.1:{proxy}"),
            Self::Postgres(_) => format!("postgres://postgres@127.0.0.1:{proxy}/postgres"),
        }
    }

    pub(crate) fn kill(&self) {
        match self {
            Self::Redis(redis) => redis.kill(),
            Self::Postgres(postgres) => postgres.kill(),
        }
    }

    pub(crate) fn start_again(&self) -> Fallible<()> {
        match self {
            Self::Redis(redis) => redis.start_again()?,
            Self::Postgres(postgres) => postgres.start_again()?,
        }
        Ok(())
    }
}

/// How far the commits of the group are behind the end of the topic.
fn lag(bootstrap: &str) -> Fallible<u64> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", TOPIC).create()?;
    let mut wanted = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        wanted.add_partition(TOPIC, i32::try_from(partition)?);
    }
    let committed = consumer.committed_offsets(wanted, PATIENCE)?;
    let mut lag = 0;
    for element in committed.elements() {
        let (low, high) = consumer.fetch_watermarks(TOPIC, element.partition(), PATIENCE)?;
        let at = match element.offset() {
            Offset::Offset(at) => at,
            _ => low,
        };
        lag += u64::try_from(high - at)?;
    }
    Ok(lag)
}
