//! lapin alone: no deduplication, no handler.

use std::time::Instant;

use futures_util::StreamExt;
use lapin::options::BasicAckOptions;

use super::{
    super::Fallible,
    PREFETCH,
    queue::{Filled, consume},
};

/// Messages a second, with an ack for each `every` messages, awaited.
pub(super) async fn run(url: &str, queue: Filled, every: usize) -> Fallible<f64> {
    let (connection, channel, mut consumer) = consume(url, &queue.name, PREFETCH).await?;
    let consuming = tokio::spawn(async move {
        let mut from = None;
        for n in 1..=queue.messages {
            let delivery = consumer.next().await.ok_or("the consumer has ended")??;
            from.get_or_insert_with(Instant::now);
            std::hint::black_box(&delivery.data);
            if n % every == 0 || n == queue.messages {
                let options = BasicAckOptions { multiple: every > 1 };
                channel.basic_ack(delivery.delivery_tag, options).await?;
            }
        }
        let took = from.map(|from| from.elapsed()).unwrap_or_default();
        Fallible::Ok(queue.messages as f64 / took.as_secs_f64())
    });
    let rate = consuming.await?;
    // Its channel may be closing by itself.
    let _ = connection.close(200, "done".into()).await;
    rate
}
