//! Kafka: topics, source and publisher.

use std::time::Duration;

use consumer::{
    BoxSource, DynPublisher,
    kafka::{KafkaAdmin, KafkaError, KafkaPublisher, KafkaSource},
};
use tokio::time::{Instant, sleep};

use crate::{cli::Consume, stop::Stop};

/// Partitions of a topic that `produce` creates.
const PARTITIONS: u32 = 4;
/// What a dead letter may carry on top of its message.
const DEAD_LETTER_ROOM: u64 = 16 << 10;
/// How long a broker is looked for.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A topic that was just created is not known to every broker at once.
const MISSING_FOR: Duration = Duration::from_secs(3);

/// A consumer that was configured, but has not met a broker.
pub(crate) struct Consumer {
    source: KafkaSource,
    topic: String,
    dead: String,
}

impl Consumer {
    pub(crate) fn new(url: &str, options: &Consume) -> Result<Self, Stop> {
        let topic = options.broker.topic.clone();
        let mut source = KafkaSource::from_url(url)
            .group(&*options.group)
            .topic(&*topic)
            .delays(options.delays().iter().copied());
        // A member that was killed holds its partitions for this long.
        if !url.contains("session.timeout.ms=") {
            source = source.property("session.timeout.ms", "10000");
        }
        Ok(Self { source: source.build().map_err(stop)?, topic, dead: options.broker.dead_letter() })
    }

    /// Looks for the topics; the dead-letter topic is created if it is missing. Retry topics are up to the source.
    pub(crate) async fn connect(self) -> Result<(BoxSource, DynPublisher), Stop> {
        let Self { source, topic, dead } = self;
        let admin = source.admin().map_err(stop)?.timeout(START_LIMIT);
        let partitions = partitions(&admin, &topic).await?;
        if admin.partitions(&dead).await.map_err(stop)?.is_none() {
            let bytes = (admin.max_message_bytes(&topic).await.map_err(stop)? + DEAD_LETTER_ROOM).to_string();
            let settings = [("max.message.bytes", &*bytes)];
            if admin.ensure_topic(&dead, partitions, &settings).await.map_err(stop)? {
                eprintln!(
                    "created the topic {dead} for dead letters, with {partitions} partitions as {topic} has"
                );
            }
        } else {
            // Warns of one that takes smaller messages than the source has. Not everyone may look.
            if let Err(error) = admin.check_dead_letter_topic(&topic, &dead).await {
                tracing::warn!(%error, "whether the dead-letter topic takes what the source has is not known");
            }
        }
        let publisher = source.publisher().map_err(stop)?;
        Ok((Box::new(source), DynPublisher::new(publisher)))
    }
}

/// A publisher that was configured, but has not met a broker.
pub(crate) struct Producer {
    url: String,
    topic: String,
}

impl Producer {
    pub(crate) fn new(url: &str, topic: &str) -> Result<Self, Stop> {
        // Only for what is wrong with the URL; it is dropped before it connects to anything.
        KafkaPublisher::from_url(url).build().map_err(stop)?;
        Ok(Self { url: url.to_owned(), topic: topic.to_owned() })
    }

    /// Looks for the topic and creates it if it is missing.
    pub(crate) async fn connect(self) -> Result<DynPublisher, Stop> {
        let admin = KafkaAdmin::from_url(&self.url).map_err(stop)?.timeout(START_LIMIT);
        let topic = &*self.topic;
        if admin.ensure_topic(topic, PARTITIONS, &[]).await.map_err(stop)? {
            eprintln!("created the topic {topic} with {PARTITIONS} partitions");
        }
        Ok(DynPublisher::new(KafkaPublisher::from_url(&self.url).build().map_err(stop)?))
    }
}

async fn partitions(admin: &KafkaAdmin, topic: &str) -> Result<u32, Stop> {
    let began = Instant::now();
    loop {
        match admin.partitions(topic).await.map_err(stop)? {
            Some(partitions) => return Ok(partitions),
            None if began.elapsed() < MISSING_FOR => sleep(Duration::from_millis(200)).await,
            None => {
                return Err(Stop::failed(format!(
                    "the topic {topic} does not exist: create it, or let `orders produce --topic {topic}` do that"
                )));
            }
        }
    }
}

fn stop(error: KafkaError) -> Stop {
    let stop = Stop::from_error(&error);
    if error.is_config() { Stop::usage(stop.to_string()) } else { stop }
}
