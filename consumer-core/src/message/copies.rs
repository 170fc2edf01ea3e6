//! What a delayed copy says of itself, and a redriven message.

use super::{Message, Origin, wire};

impl Message {
    /// Whether this is a delayed copy that has come back to where it belongs. Headers that somebody carried along from one
    /// topic or queue to another say nothing of this message.
    pub(crate) fn is_delayed_copy(&self) -> bool {
        let says = |name: &str| self.headers().get_str(name);
        match self.origin() {
            Origin::Local => true,
            // On Kafka only the copies of a group are in its retry topics.
            Origin::Log { system: "kafka", topic, .. } => {
                topic.rsplit_once(".retry.").is_some_and(|(_, delay)| wire::parse_delay(delay).is_some())
            }
            Origin::Log { topic, .. } => says("retry-topic") == Some(topic),
            Origin::Queue { queue, .. } => says("retry-queue") == Some(queue),
        }
    }

    /// A `retry-*` header of a delayed copy.
    pub(crate) fn retry_header(&self, name: &str) -> Option<&str> {
        self.headers().get_str(name).filter(|_| self.is_delayed_copy())
    }

    /// A count in such a header; what is no number counts as absent.
    pub(crate) fn retry_count(&self, name: &str) -> u32 {
        self.retry_header(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// How often it was redriven.
    pub(crate) fn redrive_count(&self) -> u32 {
        self.headers().get_str(wire::REDRIVE_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(origin: Origin) -> Message {
        let message = Message::builder().header("retry-attempt", "4").header("retry-topic", "orders");
        message.header("retry-queue", "orders").origin(origin).build()
    }

    fn log(system: &'static str, topic: &str) -> Message {
        at(Origin::Log { system, topic: topic.into(), partition: 0, offset: 0 })
    }

    fn queue(queue: &str) -> Message {
        at(Origin::Queue { system: "amqp", queue: queue.into(), exchange: "".into(), routing_key: "".into() })
    }

    #[test]
    fn headers_that_were_carried_elsewhere_count_nothing() {
        for copy in [log("kafka", "g.retry.30s"), log("memory", "orders"), queue("orders")] {
            assert_eq!(copy.retry_count(wire::RETRY_ATTEMPT), 4, "{}", copy.origin());
        }
        for carried in [
            log("kafka", "invoices"),
            log("memory", "invoices"),
            queue("invoices"),
            log("kafka", "x.retry.all"),
        ] {
            assert_eq!(carried.retry_count(wire::RETRY_ATTEMPT), 0, "{}", carried.origin());
        }
    }
}
