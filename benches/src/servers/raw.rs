//! (a) `BaseConsumer` alone: no deduplication, no handler, no commit.

use std::time::{Duration, Instant};

use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};

use super::{Fallible, topic::Topic};

/// Messages a second.
pub(super) fn run(kafka: &str, topic: &Topic, group: &str) -> Fallible<f64> {
    let consumer: BaseConsumer = topic.config(kafka, group).create()?;
    consumer.subscribe(&[&topic.name])?;
    let mut from = None;
    let mut seen = 0;
    let mut last = Instant::now();
    while seen < topic.messages {
        // Nothing is also what a poll gives that has served a rebalance.
        let Some(message) = consumer.poll(Duration::from_secs(1)) else {
            if last.elapsed() > Duration::from_secs(30) {
                return Err("Kafka fell silent".into());
            }
            continue;
        };
        std::hint::black_box(message?.payload());
        last = Instant::now();
        from.get_or_insert_with(Instant::now);
        seen += 1;
    }
    let took = from.map(|from| from.elapsed()).unwrap_or_default();
    Ok(seen as f64 / took.as_secs_f64())
}
