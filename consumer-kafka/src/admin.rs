//! Topics: create, look at, compare.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError as DriverError, RDKafkaErrorCode as Code},
    types::RDKafkaType,
};

use crate::{
    KafkaDeadLetters,
    config::{Connection, validate},
    error::{KafkaError, Kind, code_of},
    start::topic_state,
    trouble::{self, Trouble},
    url,
};

const TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULTS: &[(&str, &str)] = &[("client.id", "consumer-kafka"), ("reconnect.backoff.max.ms", "2000")];
/// What a dead letter may carry on top of the message, or a delayed copy.
pub(crate) const HEADER_ROOM: u64 = 16 << 10;

/// A client that creates topics and looks at them. Every call ends within its [timeout](Self::timeout). Needs a tokio runtime.
#[derive(Clone)]
pub struct KafkaAdmin {
    connection: Connection,
    timeout: Duration,
    /// What topics are looked up with. The driver's own client for administration never says why it gets no answer.
    client: Arc<EndsElsewhere<BaseConsumer<Watch>>>,
}

/// A client whose end blocks, for up to 100 ms: it ends on a thread of its own.
struct EndsElsewhere<T: Send + 'static>(Option<T>);

impl<T: Send> EndsElsewhere<T> {
    fn get(&self) -> Result<&T, KafkaError> {
        self.0.as_ref().ok_or_else(|| KafkaError::new(Kind::Other, "the kafka client has ended"))
    }
}

impl<T: Send> Drop for EndsElsewhere<T> {
    fn drop(&mut self) {
        let Some(client) = self.0.take() else { return };
        // Without a thread the client is dropped with the closure, here.
        let _ = std::thread::Builder::new().name("kafka-admin".to_owned()).spawn(move || drop(client));
    }
}

struct Watch(Trouble);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        trouble::log(level, facility, line);
    }

    fn error(&self, error: DriverError, reason: &str) {
        self.0.record(&error, reason);
        tracing::debug!(%error, reason, "kafka admin error");
    }
}

impl ConsumerContext for Watch {}

impl KafkaAdmin {
    /// A client for these brokers: `host:port[,host:port]`. It connects in the background.
    ///
    /// # Errors
    /// A [`KafkaError`] with `is_config()` when brokers are missing or malformed.
    pub fn new(brokers: impl AsRef<str>) -> Result<Self, KafkaError> {
        url::check_hosts(brokers.as_ref())?;
        Self::with(Connection::new(brokers.as_ref()))
    }

    /// A client from a URL as [`KafkaSource::from_url`](crate::KafkaSource::from_url) takes it.
    ///
    /// # Errors
    /// A [`KafkaError`] with `is_config()` when the URL is wrong.
    pub fn from_url(url: impl AsRef<str>) -> Result<Self, KafkaError> {
        Self::with(url::parse(url.as_ref())?.shared())
    }

    pub(crate) fn with(connection: Connection) -> Result<Self, KafkaError> {
        let mut config = connection.config(DEFAULTS);
        config.set("allow.auto.create.topics", "false");
        validate(&config, RDKafkaType::RD_KAFKA_CONSUMER)?;
        let client: BaseConsumer<Watch> =
            config.create_with_context(Watch(Trouble::new(&config))).map_err(KafkaError::from_config)?;
        Ok(Self { connection, timeout: TIMEOUT, client: Arc::new(EndsElsewhere(Some(client))) })
    }

    /// Bounds each call. Default: 30 s.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Creates the topic if it does not exist, with the broker's default replication and these settings
    /// (`max.message.bytes`, …). Whether it was created; an existing one is left as it is.
    ///
    /// # Errors
    /// When no broker answers, or the broker refuses. Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropped, the topic may be created or not.
    pub async fn ensure_topic(
        &self,
        topic: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<bool, KafkaError> {
        if self.partitions(topic).await?.is_some() {
            return Ok(false);
        }
        let doing = format!("creating the topic `{topic}`");
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        // -1: the broker's own default.
        let mut new = NewTopic::new(topic, count, TopicReplication::Fixed(-1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let options =
            AdminOptions::new().request_timeout(Some(self.timeout)).operation_timeout(Some(self.timeout));
        let answers = self.administration()?.get()?.create_topics([&new], &options).await;
        let answers = answers.map_err(|error| self.explain(&doing, &error))?;
        let created = match answers.into_iter().next() {
            Some(Ok(_)) => true,
            Some(Err((_, Code::TopicAlreadyExists))) => false,
            Some(Err((_, code))) => return Err(self.explain(&doing, &DriverError::AdminOp(code))),
            None => return Err(self.explain(&doing, &DriverError::Canceled)),
        };
        // Created at the controller; brokers get to know it a little later.
        let deadline = Instant::now() + self.timeout;
        while self.partitions(topic).await?.is_none() {
            if Instant::now() >= deadline {
                return Err(self.explain(&doing, &DriverError::AdminOp(Code::UnknownTopicOrPartition)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(created)
    }

    /// The number of partitions of a topic; `None` if there is no such topic.
    ///
    /// # Errors
    /// When no broker answers, or the broker does not let this user see the topic.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn partitions(&self, topic: &str) -> Result<Option<u32>, KafkaError> {
        let doing = format!("looking for the topic `{topic}`");
        let began = Instant::now();
        loop {
            let (client, name) = (self.client.clone(), topic.to_owned());
            let looked = tokio::task::spawn_blocking(move || {
                let client = client.get().map_err(|_| DriverError::Canceled)?;
                let found = client.fetch_metadata(Some(&name), Duration::from_secs(1));
                trouble::listen(client);
                if found.is_ok() {
                    client.context().0.clear();
                }
                found.map(|found| topic_state(&found, &name))
            });
            let error = match looked.await.unwrap_or(Err(DriverError::Canceled)) {
                Ok(Ok(count)) => return Ok(u32::try_from(count).ok()),
                Ok(Err(Code::UnknownTopicOrPartition | Code::UnknownTopic)) => return Ok(None),
                Ok(Err(Code::TopicAuthorizationFailed)) => {
                    let brokers = self.connection.brokers();
                    let message =
                        format!("kafka at {brokers} does not let this user see the topic `{topic}`");
                    return Err(KafkaError::new(Kind::Denied, message));
                }
                Ok(Err(code)) => DriverError::MetadataFetch(code),
                Err(error) => error,
            };
            if began.elapsed() >= self.timeout || self.client.get()?.context().0.refused() {
                return Err(self.explain(&doing, &error));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The largest batch a topic takes, in bytes (`max.message.bytes`).
    ///
    /// # Errors
    /// When no broker answers, the topic is missing, or this user may not see its settings.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn max_message_bytes(&self, topic: &str) -> Result<u64, KafkaError> {
        let value = self.setting(topic, "max.message.bytes").await?;
        value.and_then(|value| value.parse().ok()).ok_or_else(|| {
            KafkaError::new(Kind::Other, format!("the topic `{topic}` shows no `max.message.bytes`"))
        })
    }

    pub(crate) async fn setting(&self, topic: &str, name: &str) -> Result<Option<String>, KafkaError> {
        let doing = format!("reading the settings of the topic `{topic}`");
        if self.partitions(topic).await?.is_none() {
            let brokers = self.connection.brokers();
            let message = format!("the topic `{topic}` does not exist at kafka {brokers}");
            return Err(KafkaError::new(Kind::MissingTopic, message));
        }
        let options = AdminOptions::new().request_timeout(Some(self.timeout));
        let answers = self
            .administration()?
            .get()?
            .describe_configs([&ResourceSpecifier::Topic(topic)], &options)
            .await;
        let answers = answers.map_err(|error| self.explain(&doing, &error))?;
        let settings = match answers.into_iter().next() {
            Some(Ok(settings)) => settings,
            Some(Err(code)) => return Err(self.explain(&doing, &DriverError::AdminOp(code))),
            None => return Err(self.explain(&doing, &DriverError::Canceled)),
        };
        Ok(settings.get(name).and_then(|entry| entry.value.clone()))
    }

    /// Whether every message of `source` fits into `dead` with the headers a dead letter adds (16 KiB). If not, that
    /// is also logged as a warning.
    ///
    /// # Errors
    /// As [`max_message_bytes`](Self::max_message_bytes).
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn check_dead_letter_topic(&self, source: &str, dead: &str) -> Result<bool, KafkaError> {
        let wanted = self.max_message_bytes(source).await? + HEADER_ROOM;
        let found = self.max_message_bytes(dead).await?;
        if found < wanted {
            tracing::warn!(
                source,
                dead,
                found,
                wanted,
                "the dead-letter topic takes smaller messages than the source topic: set its max.message.bytes"
            );
        }
        Ok(found >= wanted)
    }

    /// A topic of dead letters, to be read, redriven or discarded.
    pub fn dead_letters(&self, topic: impl Into<String>) -> KafkaDeadLetters {
        KafkaDeadLetters::new(self.clone(), self.connection.clone(), self.timeout, topic.into())
    }

    fn administration(&self) -> Result<EndsElsewhere<AdminClient<DefaultClientContext>>, KafkaError> {
        let mut config = self.connection.config(DEFAULTS);
        config.set("allow.auto.create.topics", "false");
        config.create().map(|client| EndsElsewhere(Some(client))).map_err(KafkaError::from_config)
    }

    fn explain(&self, doing: &str, error: &DriverError) -> KafkaError {
        let brokers = self.connection.brokers();
        match code_of(error) {
            Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                KafkaError::new(Kind::Denied, format!("kafka at {brokers} does not permit {doing}: {error}"))
            }
            Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::RequestTimedOut) | None => {
                match self.client.get() {
                    Ok(client) => client.context().0.explain(brokers, doing, error),
                    Err(ended) => ended,
                }
            }
            Some(_) => KafkaError::new(Kind::Other, format!("{doing} at kafka {brokers} failed: {error}")),
        }
    }
}

impl fmt::Debug for KafkaAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaAdmin").field("connection", &self.connection).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_broker_answers_is_told_from_no_answer() {
        let admin = KafkaAdmin::new("127.0.0.1:1").unwrap();
        let explain = |code| admin.explain("creating the topic `t`", &DriverError::AdminOp(code));
        assert!(explain(Code::TopicAuthorizationFailed).is_denied());
        let error = explain(Code::InvalidTopic);
        assert!(!error.is_unreachable() && error.to_string().contains("`t`"), "{error}");
        assert!(explain(Code::RequestTimedOut).is_unreachable());
    }
}
