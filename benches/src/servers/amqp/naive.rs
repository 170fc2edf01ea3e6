//! What is written first: EXISTS → handler → SETEX → ack, one message at a time, every step awaited.

use std::time::Instant;

use futures_util::StreamExt;
use lapin::options::BasicAckOptions;
use redis::AsyncCommands;

use super::{
    super::{Fallible, Servers, naive::RETENTION},
    PREFETCH,
    queue::{Filled, consume, id_of},
};

/// Messages a second.
pub(super) async fn run(servers: &Servers, queue: Filled) -> Fallible<f64> {
    let mut redis = redis::Client::open(servers.redis.as_str())?.get_multiplexed_async_connection().await?;
    let (connection, _channel, mut consumer) = consume(&servers.amqp, &queue.name, PREFETCH).await?;
    let consuming = tokio::spawn(async move {
        let mut from = None;
        for _ in 0..queue.messages {
            let delivery = consumer.next().await.ok_or("the consumer has ended")??;
            from.get_or_insert_with(Instant::now);
            let key = format!("dedup:{}", id_of(&delivery)?);
            if !redis.exists::<_, bool>(&key).await? {
                std::hint::black_box(&delivery.data);
                redis.set_ex::<_, _, ()>(&key, 1, RETENTION).await?;
            }
            delivery.ack(BasicAckOptions { multiple: false }).await?;
        }
        let took = from.map(|from| from.elapsed()).unwrap_or_default();
        Fallible::Ok(queue.messages as f64 / took.as_secs_f64())
    });
    let rate = consuming.await?;
    // Its channel may be closing by itself.
    let _ = connection.close(200, "done".into()).await;
    rate
}
