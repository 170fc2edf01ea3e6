//! Options of a source.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rdkafka::{ClientConfig, types::RDKafkaType};

use crate::{
    KafkaSource,
    config::{CONSUMER_DEFAULTS, CONSUMER_FIXED, Connection, refused_for_consumer, validate},
    error::KafkaError,
    retry::RetryTopics,
    url,
};

const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// How the members of a group share the partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The protocol every broker speaks. The default, with the assignor `cooperative-sticky`: a rebalance takes away
    /// only what moves.
    #[default]
    Classic,
    /// KIP-848: the broker assigns. Needs Kafka 4.0. Session timeout, heartbeat and assignor belong to the broker.
    Consumer,
}

/// Where a partition starts that the group has no committed offset for. Where there is one, it goes on from there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartPosition {
    /// At the oldest message there is. The default: nothing is skipped.
    #[default]
    Earliest,
    /// Behind the newest message at the first assignment. A partition added to the topic later starts there too.
    Latest,
    /// At the first message with this timestamp or a later one; behind the newest where there is none.
    Timestamp(SystemTime),
    /// At these offsets, by topic and partition; a partition that is not named starts at the oldest message.
    Offsets(BTreeMap<(String, u32), u64>),
}

/// Options of a [`KafkaSource`].
#[derive(Clone)]
#[must_use]
pub struct KafkaSourceBuilder {
    connection: Result<Connection, String>,
    pub(crate) options: Options,
    properties: Vec<(String, String)>,
}

/// What the source and its thread need to know.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) group: String,
    pub(crate) replay: Option<String>,
    pub(crate) topics: Vec<String>,
    pub(crate) delays: Vec<Duration>,
    /// Follows from group, replay and delays.
    pub(crate) retry: RetryTopics,
    pub(crate) protocol: GroupProtocol,
    pub(crate) static_member: Option<String>,
    pub(crate) start: StartPosition,
    pub(crate) commit_every: Duration,
    pub(crate) max_uncommitted: u64,
    pub(crate) drain: Duration,
    pub(crate) start_timeout: Duration,
}

impl KafkaSourceBuilder {
    fn with(connection: Result<Connection, String>) -> Self {
        let options = Options {
            group: String::new(),
            replay: None,
            topics: Vec::new(),
            delays: Vec::new(),
            retry: RetryTopics::default(),
            protocol: GroupProtocol::default(),
            static_member: None,
            start: StartPosition::default(),
            commit_every: Duration::from_secs(5),
            max_uncommitted: 50_000,
            drain: Duration::from_secs(5),
            start_timeout: Duration::from_secs(30),
        };
        Self { connection, options, properties: Vec::new() }
    }

    pub(crate) fn brokers(brokers: &str) -> Self {
        Self::with(url::check_hosts(brokers).map(|()| Connection::new(brokers)).map_err(|e| e.to_string()))
    }

    pub(crate) fn url(url: &str) -> Self {
        Self::with(url::parse(url).map_err(|e| e.to_string()))
    }

    /// Names the consumer group. Required.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.options.group = group.into();
        self
    }

    /// Adds a topic. At least one is required.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.options.topics.push(topic.into());
        self
    }

    /// Adds topics.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.options.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Lets messages be published for later, as delayed retry does, with one of these delays: by the
    /// [`publisher`](KafkaSource::publisher) of the source, into a retry topic for each delay, `<group>.retry.<delay>`
    /// (`mails.retry.30s`, `mails.retry.1500ms`), which this source consumes beside its topics. Other groups see none of
    /// it. Zeros and repetitions are left out. Default: none.
    ///
    /// A message of a retry topic is delivered when its header `retry-not-before` has passed on this process's clock, or,
    /// where that cannot be read, when the delay has passed since it was published; and never held for longer than the
    /// delay. Its origin is the place in the retry topic. The messages of a partition keep their order, so one waits for
    /// those before it. Until then it is not in flight: it counts as lag, and neither holds a shutdown up nor keeps a run
    /// from being idle. Up to 256 messages or 1 MiB for each partition wait here, the others at the broker.
    ///
    /// Retry topics that are missing are created at the start, with as many partitions as the largest of the topics has,
    /// the broker's default replication, `cleanup.policy=delete`, `retention.ms` of 7 days, or twice the delay and a day if
    /// that is longer, and a `max.message.bytes` of the largest of the topics plus 16 KiB. Existing ones are left alone.
    /// Where the broker does not let this user create topics, the error lists them.
    ///
    /// A delay may be taken off the list: its topic is still consumed as long as it exists, and no longer written to. Delete
    /// it when it is empty.
    ///
    /// In a [`replay`](Self::replay) they are named `<group>.retry.<name>.<delay>`.
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.options.delays.extend(delays);
        self
    }

    /// Chooses the protocol of the group. Default: [`GroupProtocol::Classic`].
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.options.protocol = protocol;
        self
    }

    /// Makes this a static member of the group: when it comes back under the same name within the session timeout, no
    /// rebalance happens. The name is to be unique within the group; a second one of the name throws the first out, and
    /// that one ends with an error.
    ///
    /// With [`GroupProtocol::Consumer`] that holds for a member that was closed. After a crash the broker refuses the
    /// name until the old session has timed out, and until then the source ends with an error: start it again.
    pub fn static_member(mut self, id: impl Into<String>) -> Self {
        self.options.static_member = Some(id.into());
        self
    }

    /// Sets where partitions without a committed offset start. Default: [`StartPosition::Earliest`].
    ///
    /// The position found at the first assignment is committed, so that a restart goes on from there. An offset that
    /// retention has deleted counts as committed: the oldest message there is comes next.
    pub fn start(mut self, start: StartPosition) -> Self {
        self.options.start = start;
        self
    }

    /// Consumes again, from the start position, what the group may have consumed before: under the group *and* the
    /// dedup scope `<group>@<name>`. So a replay has its own offsets, its effects happen again by intent, and after a
    /// restart it goes on where it was.
    ///
    /// Without a name, consuming again within the retention does nothing: the group goes on from its committed
    /// offsets, and where those are gone, every message is a duplicate to the dedup store.
    pub fn replay(mut self, name: impl Into<String>) -> Self {
        self.options.replay = Some(name.into());
        self
    }

    /// Sets how often offsets are committed. Default: 5 s. They are also committed when a partition is revoked, when
    /// the source is flushed or closed, and when half of [`max_uncommitted`](Self::max_uncommitted) is reached.
    pub fn commit_every(mut self, every: Duration) -> Self {
        self.options.commit_every = every;
        self
    }

    /// Bounds what a crash makes come again: with so many messages of a partition taken and not committed, the
    /// partition pauses. Default: 50,000. One message that is retried for long holds the commit of all behind it.
    pub fn max_uncommitted(mut self, messages: u64) -> Self {
        self.options.max_uncommitted = messages.max(1);
        self
    }

    /// Bounds how long a rebalance waits for what runs in a revoked partition. Default: 5 s. The other members wait
    /// meanwhile.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.options.drain = limit;
        self
    }

    /// Bounds how long the source tries, at its start, to reach a broker and find its topics. Default: 30 s.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.options.start_timeout = limit;
        self
    }

    /// Passes a librdkafka property through. Those that correctness rests on are refused when built, with the reason.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Checks everything that can be checked without the network.
    ///
    /// # Errors
    /// A [`KafkaError`] with `is_config()` when brokers, group or topic are missing or malformed, or a property is
    /// refused.
    pub fn build(self) -> Result<KafkaSource, KafkaError> {
        let mut connection = self.connection.map_err(KafkaError::config)?;
        for (name, value) in self.properties {
            connection.put(name, value);
        }
        let mut options = self.options;
        options.check()?;
        options.retry = RetryTopics::new(&options.group, options.replay.as_deref(), &options.delays)?;
        options.check_retry()?;
        connection.refuse("source", |name| refused_for_consumer(name, options.protocol))?;
        let max_poll =
            connection.number("max.poll.interval.ms").map_or(MAX_POLL_INTERVAL, Duration::from_millis);
        if options.drain >= max_poll {
            return Err(KafkaError::config(format!(
                "the drain of {:?} does not fit into `max.poll.interval.ms`, {max_poll:?}",
                options.drain
            )));
        }
        let config = options.config(&connection);
        validate(&config, RDKafkaType::RD_KAFKA_CONSUMER)?;
        Ok(KafkaSource::new(connection, Arc::new(options), config))
    }
}

/// Shows no value of a property.
impl fmt::Debug for KafkaSourceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSourceBuilder")
            .field("connection", &self.connection)
            .field("options", &self.options)
            .field("properties", &self.properties.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .finish()
    }
}

impl Options {
    fn check(&self) -> Result<(), KafkaError> {
        if self.group.is_empty() {
            return Err(KafkaError::config("the kafka source has no group: set it by `.group(…)`"));
        }
        if self.topics.is_empty() {
            return Err(KafkaError::config("the kafka source has no topic: set it by `.topic(…)`"));
        }
        for topic in &self.topics {
            if !is_topic_name(topic) {
                return Err(KafkaError::config(format!(
                    "`{topic}` is no name of a kafka topic: 1 to 249 letters, digits, dots, underscores and hyphens \
                     (patterns are not supported)"
                )));
            }
        }
        if self.replay.as_ref().is_some_and(String::is_empty) {
            return Err(KafkaError::config("a replay needs a name, which its offsets and dedup keys go by"));
        }
        if self.static_member.as_ref().is_some_and(String::is_empty) {
            return Err(KafkaError::config("a static member needs a name"));
        }
        if self.commit_every.is_zero() {
            return Err(KafkaError::config("the interval between commits is zero"));
        }
        Ok(())
    }

    fn check_retry(&self) -> Result<(), KafkaError> {
        if let Some(name) = self.retry.names().find(|name| !is_topic_name(name)) {
            return Err(KafkaError::config(format!(
                "with `.delays(…)` group and replay are parts of the names of topics, and `{name}` is none: 1 to 249 \
                 letters, digits, dots, underscores and hyphens"
            )));
        }
        if let Some(topic) = self.topics.iter().find(|topic| self.retry.delay_of(topic).is_some()) {
            return Err(KafkaError::config(format!(
                "`{topic}` is a retry topic of the group, which `.delays(…)` consumes already: do not name it as a topic"
            )));
        }
        Ok(())
    }

    /// The group as Kafka and the dedup store know it.
    pub(crate) fn scope(&self) -> String {
        match &self.replay {
            Some(name) => format!("{}@{name}", self.group),
            None => self.group.clone(),
        }
    }

    fn config(&self, connection: &Connection) -> ClientConfig {
        let mut config = connection.config(CONSUMER_DEFAULTS);
        for (name, value) in CONSUMER_FIXED {
            config.set(*name, *value);
        }
        config.set("group.id", self.scope());
        if let Some(id) = &self.static_member {
            config.set("group.instance.id", id);
        }
        match self.protocol {
            GroupProtocol::Classic if connection.has("partition.assignment.strategy") => {}
            GroupProtocol::Classic => {
                config.set("partition.assignment.strategy", "cooperative-sticky");
            }
            GroupProtocol::Consumer => {
                config.set("group.protocol", "consumer");
            }
        }
        config
    }
}

fn is_topic_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> KafkaSourceBuilder {
        KafkaSource::builder("h:1").group("g").topic("t")
    }

    fn refusal(builder: KafkaSourceBuilder) -> String {
        let error = builder.build().unwrap_err();
        assert!(error.is_config(), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refusal(KafkaSource::builder("").group("g").topic("t")).contains("host:port"));
        assert!(refusal(KafkaSource::builder("h:1").topic("t")).contains("group"));
        assert!(refusal(KafkaSource::builder("h:1").group("g")).contains("topic"));
        assert!(refusal(builder().topic("^a.*")).contains("^a.*"));
        assert!(refusal(builder().replay("")).contains("name"));
    }

    #[test]
    fn properties_that_correctness_rests_on_are_refused_with_the_reason() {
        for name in ["enable.auto.commit", "enable.auto.offset.store", "group.id", "bootstrap.servers"] {
            let message = refusal(builder().property(name, "true"));
            assert!(message.contains(name) && message.len() > name.len() + 40, "{message}");
        }
        let message =
            refusal(KafkaSource::from_url("kafka://h:1?enable.auto.commit=true").group("g").topic("t"));
        assert!(message.contains("enable.auto.commit"), "{message}");
    }

    #[test]
    fn with_kip_848_the_broker_owns_session_and_assignor() {
        let kip = || builder().group_protocol(GroupProtocol::Consumer);
        kip().build().unwrap();
        for name in ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"] {
            assert!(refusal(kip().property(name, "6000")).contains("belongs to the broker"));
        }
        builder().property("session.timeout.ms", "10000").build().unwrap();
        builder().property("partition.assignment.strategy", "range").build().unwrap();
    }

    #[test]
    fn an_unknown_property_is_named_and_its_value_not_shown() {
        let message = refusal(builder().property("sasl.pasword", "s3cret"));
        assert!(message.contains("sasl.pasword") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn a_drain_has_to_fit_into_the_poll_interval() {
        assert!(refusal(builder().drain(Duration::from_secs(300))).contains("max.poll.interval.ms"));
        builder().drain(Duration::from_secs(300)).property("max.poll.interval.ms", "600000").build().unwrap();
    }

    #[test]
    fn a_replay_has_a_group_and_scope_of_its_own() {
        let source = builder().replay("2026-11").build().unwrap();
        assert_eq!(source.scope(), "g@2026-11");
        assert_eq!(builder().build().unwrap().scope(), "g");
    }

    #[test]
    fn delays_make_topics_whose_names_have_to_be_legal() {
        let delays = |builder: KafkaSourceBuilder| builder.delays([Duration::from_secs(30)]);
        assert!(refusal(delays(builder().group("order mails"))).contains("order mails.retry.30s"));
        assert!(refusal(delays(builder().group("g".repeat(245)))).contains("249"));
        assert!(refusal(delays(builder().topic("g.retry.30s"))).contains("consumes already"));
        assert!(refusal(delays(builder().replay("a.b"))).contains("a.b"));
        builder().group("order mails").delays([Duration::ZERO]).build().unwrap();
        delays(builder().replay("2026-11")).build().unwrap();
    }

    #[test]
    fn secrets_are_not_in_debug() {
        let builder =
            KafkaSource::from_url("kafka+tls://ann:s3cret@h:1").property("ssl.key.password", "t0psecret");
        let source = KafkaSource::from_url("kafka://ann:s3cret@h:1").group("g").topic("t").build().unwrap();
        let shown = format!("{builder:?} {source:?} {:?}", source.publisher().unwrap());
        assert!(!shown.contains("s3cret") && !shown.contains("t0psecret"), "{shown}");
    }
}
