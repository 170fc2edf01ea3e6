//! Properties of the driver: what we set, what is passed through and what is refused.

use std::{collections::BTreeMap, fmt};

use rdkafka::{
    ClientConfig,
    client::{Client, DefaultClientContext},
    config::RDKafkaLogLevel,
    types::RDKafkaType,
};

use crate::{builder::GroupProtocol, error::KafkaError};

/// Brokers and passed-through properties. Shared by a source and the publisher made from it.
#[derive(Clone)]
pub(crate) struct Connection {
    brokers: String,
    properties: BTreeMap<String, String>,
}

/// Names only: which of the values are secret is the driver's affair.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("brokers", &self.brokers)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl Connection {
    pub(crate) fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new() }
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Under its first name if it has two: the driver would take whichever comes last.
    pub(crate) fn put(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        let first = ALIASES.iter().find(|(_, alias)| *alias == name).map(|(first, _)| (*first).to_owned());
        self.properties.insert(first.unwrap_or(name), value.into());
    }

    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.properties.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.properties.contains_key(name)
    }

    /// Only what connecting needs, for a client of another kind.
    pub(crate) fn shared(&self) -> Self {
        let properties = self
            .properties
            .iter()
            .filter(|(name, _)| is_shared(name))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        Self { brokers: self.brokers.clone(), properties }
    }

    /// `defaults`, then what the user set, which wins.
    pub(crate) fn config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in defaults {
            if !self.has(name) {
                config.set(*name, *value);
            }
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// The first property that is not taken, as an error.
    pub(crate) fn refuse(
        &self,
        what: &str,
        reason: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<(), KafkaError> {
        for name in self.properties.keys() {
            if let Some(reason) = reason(name) {
                return Err(KafkaError::config(format!(
                    "a kafka {what} does not take the property `{name}`: {reason}"
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.properties.get(name)?.parse().ok()
    }
}

/// Two names of one property, ours first.
const ALIASES: &[(&str, &str)] = &[
    ("sasl.mechanism", "sasl.mechanisms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

fn is_shared(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "ssl.",
        "sasl.",
        "security.",
        "socket.",
        "broker.",
        "reconnect.",
        "client.",
        "enable.ssl.",
        "enable.sasl.",
        "https.",
    ];
    const NAMES: &[&str] = &[
        "debug",
        "connections.max.idle.ms",
        "metadata.max.age.ms",
        "topic.metadata.refresh.interval.ms",
        "log_level",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// What memory and correctness of a consumer rest on. The first part may be overridden by properties.
pub(crate) const CONSUMER_DEFAULTS: &[(&str, &str)] = &[
    // Prefetched messages are most of what the process holds: 16 MiB, and for small messages 20,000 of them, since
    // each costs some 400 bytes more.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "20000"),
    ("fetch.max.bytes", "16777216"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
    ("isolation.level", "read_committed"),
    ("client.id", "consumer-kafka"),
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("reconnect.backoff.max.ms", "2000"),
];

pub(crate) const CONSUMER_FIXED: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A committed offset that retention has deleted: the oldest message there is comes next, nothing more is lost.
    // Where a partition without a committed offset starts is decided at the assignment.
    ("auto.offset.reset", "earliest"),
    ("enable.partition.eof", "false"),
    ("allow.auto.create.topics", "false"),
    ("statistics.interval.ms", "1000"),
];

pub(crate) const PUBLISHER_DEFAULTS: &[(&str, &str)] = &[
    ("partitioner", "murmur2_random"),
    ("linger.ms", "2"),
    ("delivery.timeout.ms", "30000"),
    ("queue.buffering.max.messages", "100000"),
    // Room for the largest message: one that never fits would wait for ever.
    ("queue.buffering.max.kbytes", "65536"),
    // How large a message may be is the topic's affair. A batch that the topic does not take fails all messages in it,
    // and the driver does not split it, so batches stay far below the 1 MiB that topics take by default.
    ("message.max.bytes", "67108864"),
    ("batch.size", "131072"),
    ("topic.metadata.propagation.max.ms", "5000"),
    ("client.id", "consumer-kafka"),
    ("reconnect.backoff.max.ms", "2000"),
];

pub(crate) const PUBLISHER_FIXED: &[(&str, &str)] =
    &[("acks", "all"), ("enable.idempotence", "true"), ("allow.auto.create.topics", "false")];

const BROKERS: &str = "the brokers are named where the builder or URL starts";
const COMMITS: &str = "only what was acked may be committed, so the source itself commits";
const CREATE: &str = "a misspelt topic is to be reported, not created";

/// Why a consumer does not take this property, if it does not.
pub(crate) fn refused_for_consumer(name: &str, protocol: GroupProtocol) -> Option<&'static str> {
    let reason = match name {
        "bootstrap.servers" | "metadata.broker.list" => BROKERS,
        "enable.auto.commit"
        | "auto.commit.enable"
        | "auto.commit.interval.ms"
        | "enable.auto.offset.store"
        | "offset.store.method"
        | "offset.store.path"
        | "offset.store.sync.interval.ms" => COMMITS,
        "group.id" => "set it by `.group(…)`, since it is the scope of deduplication too",
        "group.instance.id" => "set it by `.static_member(…)`",
        "group.protocol" => "set it by `.group_protocol(…)`",
        "auto.offset.reset" => "set it by `.start(…)`, which never skips messages behind a committed offset",
        "check.crcs" => "a damaged batch would be skipped, and with it the messages in it",
        "enable.partition.eof" => "an end of a partition would be taken for an error",
        "allow.auto.create.topics" => CREATE,
        "statistics.interval.ms" => "lag and the state of the connection are read from the statistics",
        "session.timeout.ms"
        | "heartbeat.interval.ms"
        | "partition.assignment.strategy"
        | "group.protocol.type"
            if protocol == GroupProtocol::Consumer =>
        {
            "with the consumer protocol (KIP-848) it belongs to the broker"
        }
        _ => return None,
    };
    Some(reason)
}

/// Why a publisher does not take this property, if it does not.
pub(crate) fn refused_for_publisher(name: &str) -> Option<&'static str> {
    let reason = match name {
        "bootstrap.servers" | "metadata.broker.list" => BROKERS,
        "acks" | "request.required.acks" => "a publish counts when all in-sync replicas have it",
        "enable.idempotence" => "without it a retried request may double or reorder messages",
        "max.in.flight"
        | "max.in.flight.requests.per.connection"
        | "retries"
        | "message.send.max.retries" => {
            "it is bound by idempotence; `delivery.timeout.ms` bounds the time instead"
        }
        "allow.auto.create.topics" => CREATE,
        "transactional.id" => "the publisher does not use transactions",
        "delivery.report.only.error" => "a publish is done when its delivery report is there",
        _ => return None,
    };
    Some(reason)
}

/// Lets the driver check a configuration without a connection.
pub(crate) fn validate(config: &ClientConfig, kind: RDKafkaType) -> Result<(), KafkaError> {
    let mut config = config.clone();
    config.remove("bootstrap.servers");
    let native = config.create_native_config().map_err(KafkaError::from_config)?;
    Client::new(&config, native, kind, DefaultClientContext).map_err(KafkaError::from_config)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_value_of_a_property() {
        let mut connection = Connection::new("h:1");
        connection.put("sasl.password", "s3cret");
        connection.put("sasl.oauthbearer.config", "t0ken");
        let shown = format!("{connection:?}");
        assert!(shown.contains("sasl.password") && shown.contains("h:1"));
        assert!(!shown.contains("s3cret") && !shown.contains("t0ken"), "{shown}");
    }

    #[test]
    fn our_own_defaults_are_valid_and_not_refused() {
        for defaults in [CONSUMER_DEFAULTS, CONSUMER_FIXED] {
            validate(&Connection::new("h:1").config(defaults), RDKafkaType::RD_KAFKA_CONSUMER).unwrap();
        }
        for defaults in [PUBLISHER_DEFAULTS, PUBLISHER_FIXED] {
            validate(&Connection::new("h:1").config(defaults), RDKafkaType::RD_KAFKA_PRODUCER).unwrap();
        }
        for (name, _) in CONSUMER_DEFAULTS {
            assert_eq!(refused_for_consumer(name, GroupProtocol::Classic), None);
        }
        for (name, _) in CONSUMER_FIXED {
            assert!(refused_for_consumer(name, GroupProtocol::Classic).is_some(), "{name} can be overridden");
        }
        for (name, _) in PUBLISHER_DEFAULTS {
            assert_eq!(refused_for_publisher(name), None);
        }
        for (name, _) in PUBLISHER_FIXED {
            assert!(refused_for_publisher(name).is_some(), "{name} can be overridden");
        }
    }

    #[test]
    fn a_property_goes_before_our_default_under_either_of_its_names() {
        let mut connection = Connection::new("h:1");
        connection.put("message.timeout.ms", "7");
        connection.put("linger.ms", "9");
        let config = connection.config(PUBLISHER_DEFAULTS);
        assert_eq!(config.get("delivery.timeout.ms"), Some("7"));
        assert_eq!(config.get("message.timeout.ms"), None);
        assert_eq!(config.get("linger.ms"), Some("9"));
    }

    #[test]
    fn a_publisher_gets_what_connecting_needs_and_nothing_of_the_consumer() {
        let mut connection = Connection::new("h:1");
        connection.put("sasl.password", "x");
        connection.put("session.timeout.ms", "10000");
        let shared = connection.shared();
        assert!(shared.has("sasl.password") && !shared.has("session.timeout.ms"));
    }
}
