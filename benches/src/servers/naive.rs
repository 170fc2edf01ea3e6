//! (b) What is written first: EXISTS → handler → SETEX, one message at a time, every step awaited.

use std::time::{Duration, Instant};

use rdkafka::{
    Message,
    consumer::{CommitMode, Consumer, StreamConsumer},
    message::{BorrowedMessage, Headers},
};
use redis::{AsyncCommands, aio::MultiplexedConnection};

use super::{Fallible, Servers, topic::Topic};

pub(super) const RETENTION: u64 = 86_400;

/// Messages a second, over the first `limit` messages of the topic. The whole loop is one spawned task.
pub(super) async fn run(servers: &Servers, topic: &Topic, group: &str, limit: usize) -> Fallible<f64> {
    let consumer = topic.hand_written(&servers.kafka, group)?;
    let redis = redis::Client::open(servers.redis.as_str())?.get_multiplexed_async_connection().await?;
    tokio::spawn(consume(consumer, redis, group.to_owned(), limit)).await?
}

async fn consume(
    consumer: StreamConsumer,
    mut redis: MultiplexedConnection,
    group: String,
    limit: usize,
) -> Fallible<f64> {
    let mut message = consumer.recv().await?;
    let from = Instant::now();
    let mut committed = from;
    for _ in 1..limit {
        let key = format!("dedup:{group}:{}", id(&message).ok_or("a message without id")?);
        if !redis.exists::<_, bool>(&key).await? {
            std::hint::black_box(message.payload());
            redis.set_ex::<_, _, ()>(&key, 1, RETENTION).await?;
        }
        if committed.elapsed() >= Duration::from_secs(1) {
            consumer.commit(&consumer.position()?, CommitMode::Async)?;
            committed = Instant::now();
        }
        message = consumer.recv().await?;
    }
    Ok(limit as f64 / from.elapsed().as_secs_f64())
}

pub(super) fn id<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == "message-id")?;
    std::str::from_utf8(header.value?).ok()
}
