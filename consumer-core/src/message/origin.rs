//! Where a message came from.

use std::{fmt, sync::Arc, time::SystemTime};

use super::{Headers, wire};

/// Where a delivery came from, in one of the two shapes brokers have: a place in a partitioned log, or a queue.
///
/// It names the message in logs and errors and becomes the provenance headers of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A message made in this process, which no source has delivered.
    Local,
    /// A place in a partitioned log.
    Log {
        /// The kind of source: `kafka` or `memory`.
        system: &'static str,
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The offset within the partition.
        offset: u64,
    },
    /// A queue, which has no positions.
    Queue {
        /// The kind of source: `amqp`.
        system: &'static str,
        /// The queue.
        queue: Arc<str>,
        /// The exchange the message was published to; empty for the default exchange.
        exchange: Arc<str>,
        /// The routing key it was published with.
        routing_key: Arc<str>,
    },
}

impl Origin {
    /// The kind of source: `kafka`, `amqp`, `memory`, or `local` for a message that no source delivered.
    pub fn system(&self) -> &'static str {
        match self {
            Origin::Local => "local",
            Origin::Log { system, .. } | Origin::Queue { system, .. } => system,
        }
    }

    /// The topic or queue; empty for a local message.
    pub fn name(&self) -> &str {
        match self {
            Origin::Local => "",
            Origin::Log { topic, .. } => topic,
            Origin::Queue { queue, .. } => queue,
        }
    }

    /// Whether the source has positions, which name a message for as long as the log keeps it.
    pub fn has_position(&self) -> bool {
        matches!(self, Origin::Log { .. })
    }

    /// Adds the origin as headers that start with `prefix`, as the wire format says.
    pub(crate) fn write_to(&self, prefix: &str, timestamp: Option<SystemTime>, headers: &mut Headers) {
        let mut put = |name: &str, value: String| headers.append(format!("{prefix}{name}"), value);
        put("source", self.system().to_owned());
        match self {
            Origin::Local => {}
            Origin::Log { topic, partition, offset, .. } => {
                put("topic", topic.to_string());
                put("partition", partition.to_string());
                put("offset", offset.to_string());
                if let Some(at) = timestamp {
                    put("timestamp", wire::format_time(at));
                }
            }
            Origin::Queue { queue, exchange, routing_key, .. } => {
                put("queue", queue.to_string());
                put("exchange", exchange.to_string());
                put("routing-key", routing_key.to_string());
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Local => f.write_str("local"),
            Origin::Log { topic, partition, offset, .. } => write!(f, "{topic}/{partition}@{offset}"),
            Origin::Queue { queue, .. } => f.write_str(queue),
        }
    }
}
