//! The best a careful user writes by hand: 64 workers by message id, EXISTS → handler → SETEX → ack in each.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures_util::StreamExt;
use lapin::{message::Delivery, options::BasicAckOptions};
use redis::{AsyncCommands, aio::MultiplexedConnection};
use tokio::sync::mpsc;

use super::{
    super::{Fallible, Servers, naive::RETENTION},
    PREFETCH,
    queue::{Filled, consume, id_of},
};

const WORKERS: usize = 64;
/// Waiting for each worker.
const QUEUE: usize = 16;

pub(super) struct Ran {
    pub(super) rate: f64,
    /// Handler calls beyond one for each id.
    pub(super) extra: usize,
}

pub(super) async fn run(servers: &Servers, queue: Filled) -> Fallible<Ran> {
    let redis = redis::Client::open(servers.redis.as_str())?.get_multiplexed_async_connection().await?;
    let (connection, _channel, mut consumer) = consume(&servers.amqp, &queue.name, PREFETCH).await?;
    let handled = Arc::new(AtomicUsize::new(0));
    let (queues, workers): (Vec<_>, Vec<_>) = (0..WORKERS)
        .map(|_| {
            let (queue, queued) = mpsc::channel(QUEUE);
            (queue, tokio::spawn(work(queued, redis.clone(), handled.clone())))
        })
        .unzip();
    let messages = queue.messages;
    let dispatch = tokio::spawn(async move {
        let hasher = foldhash::fast::RandomState::default();
        let mut from = None;
        for _ in 0..messages {
            let delivery = consumer.next().await.ok_or("the consumer has ended")??;
            from.get_or_insert_with(Instant::now);
            let id = id_of(&delivery)?;
            let worker = hasher.hash_one(&id) as usize % WORKERS;
            queues[worker].send((format!("dedup:{id}"), delivery)).await?;
        }
        Fallible::Ok(from)
    });
    let from = dispatch.await??;
    for worker in workers {
        worker.await??;
    }
    let took = from.map(|from| from.elapsed()).unwrap_or_default();
    // Its channel may be closing by itself.
    let _ = connection.close(200, "done".into()).await;
    let extra = handled.load(Ordering::Relaxed).saturating_sub(queue.unique);
    Ok(Ran { rate: messages as f64 / took.as_secs_f64(), extra })
}

async fn work(
    mut queued: mpsc::Receiver<(String, Delivery)>,
    mut redis: MultiplexedConnection,
    handled: Arc<AtomicUsize>,
) -> Fallible<()> {
    while let Some((key, delivery)) = queued.recv().await {
        if !redis.exists::<_, bool>(&key).await? {
            std::hint::black_box(&delivery.data);
            handled.fetch_add(1, Ordering::Relaxed);
            redis.set_ex::<_, _, ()>(&key, 1, RETENTION).await?;
        }
        delivery.ack(BasicAckOptions { multiple: false }).await?;
    }
    Ok(())
}
