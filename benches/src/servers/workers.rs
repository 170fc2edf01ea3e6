//! (d) The best a careful user writes by hand: 64 workers by message key, EXISTS → handler → SETEX in each.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Message,
    consumer::{CommitMode, Consumer},
    message::OwnedMessage,
};
use redis::{AsyncCommands, aio::MultiplexedConnection};
use tokio::sync::{Notify, mpsc};

use super::{
    Fallible, Servers,
    naive::{RETENTION, id},
    topic::Topic,
};

const WORKERS: usize = 64;
/// Waiting for each worker.
const QUEUE: usize = 16;

/// What is dispatched and not done.
#[derive(Debug, Default)]
struct InFlight {
    messages: AtomicUsize,
    none: Notify,
}

/// Messages a second, over the first `limit` messages of the topic.
pub(super) async fn run(servers: &Servers, topic: &Topic, group: &str, limit: usize) -> Fallible<f64> {
    let consumer = topic.hand_written(&servers.kafka, group)?;
    let redis = redis::Client::open(servers.redis.as_str())?.get_multiplexed_async_connection().await?;
    let in_flight = Arc::new(InFlight::default());
    let (queues, workers): (Vec<_>, Vec<_>) = (0..WORKERS)
        .map(|_| {
            let (queue, queued) = mpsc::channel(QUEUE);
            (queue, tokio::spawn(work(queued, redis.clone(), in_flight.clone())))
        })
        .unzip();
    let group = group.to_owned();
    let dispatch = tokio::spawn(async move {
        let hasher = foldhash::fast::RandomState::default();
        let mut message = consumer.recv().await?;
        let from = Instant::now();
        let mut committed = from;
        for n in 1..=limit {
            let worker = hasher.hash_one(message.key()) as usize % WORKERS;
            let key = format!("dedup:{group}:{}", id(&message).ok_or("a message without id")?);
            in_flight.messages.fetch_add(1, Ordering::AcqRel);
            queues[worker].send((key, message.detach())).await?;
            if committed.elapsed() >= Duration::from_secs(1) {
                // The positions are behind what was dispatched: nothing may be committed that is not done.
                in_flight.wait().await;
                consumer.commit(&consumer.position()?, CommitMode::Async)?;
                committed = Instant::now();
            }
            if n < limit {
                message = consumer.recv().await?;
            }
        }
        in_flight.wait().await;
        Fallible::Ok(limit as f64 / from.elapsed().as_secs_f64())
    });
    let rate = dispatch.await??;
    for worker in workers {
        worker.await??;
    }
    Ok(rate)
}

async fn work(
    mut queued: mpsc::Receiver<(String, OwnedMessage)>,
    mut redis: MultiplexedConnection,
    in_flight: Arc<InFlight>,
) -> Fallible<()> {
    while let Some((key, message)) = queued.recv().await {
        if !redis.exists::<_, bool>(&key).await? {
            std::hint::black_box(message.payload());
            redis.set_ex::<_, _, ()>(&key, 1, RETENTION).await?;
        }
        in_flight.done();
    }
    Ok(())
}

impl InFlight {
    fn done(&self) {
        if self.messages.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_one();
        }
    }

    async fn wait(&self) {
        while self.messages.load(Ordering::Acquire) > 0 {
            self.none.notified().await;
        }
    }
}
