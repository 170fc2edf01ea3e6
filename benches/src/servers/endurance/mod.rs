//! Endurance: half of the measured maximum for half an hour, and whether anything grows.
//!
//! One consumer with all layers, a Redis with a short retention, a broker that keeps little. One message in a thousand
//! fails at its first attempt, one in five thousand is dead-lettered, a tenth are duplicates.

mod load;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use consumer_amqp::{AmqpAdmin, AmqpSource, Queue};
use consumer_core::{
    CatchPanicLayer, Consumer, DeadLetterLayer, DedupLayer, DynPublisher, Failure, Message, MetricsLayer,
    Outcome, Report as Run, RetryLayer, Source, TimeoutLayer, TraceLayer, runtime::RunError,
};
use consumer_kafka::{KafkaAdmin, KafkaSource};
use dedup_redis::RedisStore;
use tokio::{
    runtime::{Handle, Runtime},
    sync::oneshot,
    task::JoinHandle,
    time::{interval, sleep},
};
use tower::{ServiceBuilder, service_fn};

pub(crate) use load::Load;
use load::Publishing;
use watch::{Drift, Sample, drift, resident, steady};

use super::{Fallible, Servers, redis_server::RedisServer};
use crate::report::{Report, Row};

/// How long an id is remembered.
const RETENTION: Duration = Duration::from_secs(120);
/// What an id may cost in Redis at most: by the bench of the store, and with tables that have just doubled.
const BYTES_PER_ID: f64 = 182.0;
/// Of what Redis keeps, up to a quarter has expired: it looks at samples, and goes on while more of them have. A little more
/// for what it does between two looks.
const NOT_SWEPT: f64 = 1.4;
const MAXIMUM_LASTS: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(10);
/// What is left after the end goes within this time.
const DRAIN: Duration = Duration::from_secs(60);
/// A shorter run would end before its steady part has three samples.
const SHORTEST: Duration = Duration::from_secs(300);
const MIB: f64 = 1024.0 * 1024.0;

/// Which broker to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Broker {
    Kafka,
    Amqp,
}

impl Broker {
    fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Amqp => "amqp",
        }
    }
}

/// Runs for so long; the rows say what has grown.
pub(crate) fn run(
    report: &mut Report,
    servers: &Servers,
    broker: Broker,
    lasts: Duration,
    load: &Load,
) -> Fallible<()> {
    if let Some(target) = &load.target {
        return load::publish(servers, broker, target, load);
    }
    if lasts < SHORTEST {
        return Err("an endurance run takes five minutes at least: see --minutes".into());
    }
    let mut redis = RedisServer::connect(&servers.redis)?;
    redis.reset()?;
    let empty = redis.used_memory()? as f64;
    Runtime::new()?.block_on(async {
        let consuming = Consuming::start(servers, broker).await?;
        let most = consuming.maximum(servers, broker).await?;
        let name = broker.name();
        report.add(Row::new(format!("endurance, {name}: the maximum, publisher beside"), most, "messages/s"));
        let rate = (most / 2.0) as u64;
        // So that Redis begins empty.
        until(RETENTION * 2, || Ok(redis.keys()? < 10)).await?;

        let idle = tasks();
        let from = Instant::now();
        let (settled, handled) = consuming.counted();
        let publishing = Publishing::start(servers, broker, &consuming.target, rate, 1_000_000_000)?;
        let mut samples = Vec::new();
        let mut every = interval(EVERY);
        every.tick().await;
        while from.elapsed() < lasts {
            every.tick().await;
            let sample = Sample {
                at: from.elapsed().as_secs_f64(),
                resident: resident()?,
                tasks: tasks(),
                lag: (publishing.confirmed() as f64 - (consuming.counted().0 - settled) as f64).max(0.0),
                redis: (redis.used_memory()? as f64 - empty) / MIB,
                keys: redis.keys()? as f64,
            };
            eprintln!("{sample:.0?}");
            samples.push(sample);
        }
        let (confirmed, unique) = tokio::task::block_in_place(|| publishing.stop())?;
        let lasted = from.elapsed().as_secs_f64();
        until(DRAIN, || Ok(consuming.counted().0 - settled >= confirmed)).await?;
        let processed = (consuming.counted().1 - handled) as f64;
        let achieved = confirmed as f64 / lasted;
        rows(report, name, &samples, achieved);
        let row = Row::new(format!("endurance, {name}: handled of the ids published"), processed, "ids");
        report.add(row.against("published", unique as f64).ratio_at_least(1.0).ratio_at_most(1.0));
        // Of a message in flight there is a task, so that only what is left without any shows a leak.
        let _ = until(DRAIN, || Ok(tasks() <= idle)).await;
        let row = Row::new(format!("endurance, {name}: tasks, idle again"), tasks(), "tasks");
        report.add(row.against("idle before", idle).ratio_at_most(1.0));
        let run = consuming.stop().await?;
        eprintln!("{run}");
        until(RETENTION * 2, || Ok(redis.keys()? < 10)).await?;
        let left = (redis.used_memory()? as f64 - empty) / MIB;
        report.add(
            Row::new(format!("endurance, {name}: left in redis after the retention"), left, "MiB")
                .at_most(8.0),
        );
        Ok(())
    })
}

fn rows(report: &mut Report, name: &str, samples: &[Sample], rate: f64) {
    report.add(Row::new(format!("endurance, {name}: the load"), rate, "messages/s"));
    let samples = steady(samples, RETENTION.as_secs_f64() * 2.0);
    let mut drifts = |what: &str, unit, of: fn(&Sample) -> f64, limit: f64| {
        if let Some(Drift { first, last }) = drift(samples, of) {
            let row = Row::new(format!("endurance, {name}: {what}, last third"), last, unit);
            report.add(row.against("first third", first).at_most(limit.max(first * 1.05)));
        }
    };
    let first = drift(samples, |sample| sample.resident).map_or(0.0, |drift| drift.first);
    drifts("resident memory", "MiB", |sample| sample.resident, first + 4.0);
    drifts("tasks", "tasks", |sample| sample.tasks, 320.0);
    drifts("lag", "messages", |sample| sample.lag, rate);
    let predicted = rate * 0.9 * RETENTION.as_secs_f64();
    if let Some(Drift { last, .. }) = drift(samples, |sample| sample.keys) {
        let row = Row::new(format!("endurance, {name}: ids in redis"), last, "ids");
        report.add(row.against("rate x retention", predicted).ratio_at_most(NOT_SWEPT));
    }
    if let Some(Drift { last, .. }) = drift(samples, |sample| sample.redis) {
        let row = Row::new(format!("endurance, {name}: redis memory"), last, "MiB");
        let predicted = predicted * BYTES_PER_ID / MIB;
        report.add(row.against("rate x retention x 182 bytes", predicted).ratio_at_most(NOT_SWEPT));
    }
}

/// The consumer at work.
struct Consuming {
    target: String,
    counts: Arc<(AtomicU64, AtomicU64)>,
    stop: oneshot::Sender<()>,
    run: JoinHandle<Result<Run, RunError>>,
}

impl Consuming {
    async fn start(servers: &Servers, broker: Broker) -> Fallible<Self> {
        let target = format!("endurance-{}", std::process::id());
        let dead = format!("{target}.dead");
        match broker {
            Broker::Kafka => {
                let admin = KafkaAdmin::new(&servers.kafka)?;
                let little = [("retention.ms", "120000"), ("segment.bytes", "16777216")];
                admin.ensure_topic(&target, 4, &little).await?;
                admin.ensure_topic(&dead, 4, &little).await?;
                let source = KafkaSource::builder(&servers.kafka)
                    .group(target.as_str())
                    .topic(target.as_str())
                    .build()?;
                let dead_letters = DynPublisher::new(source.publisher()?);
                Self::run(servers, source, dead_letters, target, dead).await
            }
            Broker::Amqp => {
                AmqpAdmin::new(&servers.amqp)?.ensure_queue(Queue::quorum(&dead)).await?;
                let source = AmqpSource::builder(&servers.amqp).queue(target.as_str()).build()?;
                let dead_letters = DynPublisher::new(source.publisher()?);
                Self::run(servers, source, dead_letters, target, dead).await
            }
        }
    }

    async fn run(
        servers: &Servers,
        source: impl Source,
        dead_letters: DynPublisher,
        target: String,
        dead: String,
    ) -> Fallible<Self> {
        let store = RedisStore::connect(servers.redis.as_str()).await?;
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (settled, handled) = (counts.clone(), counts.clone());
        let handler = move |message: Message| {
            let handled = handled.clone();
            async move {
                let number = number(&message);
                if number % 5_000 == 13 {
                    handled.1.fetch_add(1, Ordering::Relaxed);
                    return Err(Failure::permanent("no such mailbox"));
                }
                if number % 1_000 == 7 && message.attempt() == 1 {
                    return Err(Failure::transient("busy"));
                }
                handled.1.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let stack = ServiceBuilder::new()
            .map_response(move |outcome: Outcome| {
                settled.0.fetch_add(1, Ordering::Relaxed);
                outcome
            })
            .layer(TraceLayer::new())
            .layer(MetricsLayer::new("endurance"))
            .layer(DeadLetterLayer::new(dead_letters, dead))
            .layer(DedupLayer::new(store, "endurance").retention(RETENTION))
            .layer(RetryLayer::exponential(Duration::from_millis(200)).max_attempts(3))
            .layer(TimeoutLayer::new(Duration::from_secs(10)))
            .layer(CatchPanicLayer::new())
            .service(service_fn(handler));
        let (stop, stopped) = oneshot::channel();
        let consumer = Consumer::new(source, stack).shutdown(async move { drop(stopped.await) });
        Ok(Self { target, counts, stop, run: tokio::spawn(consumer.run()) })
    }

    /// Deliveries dealt with, and ids handled for good.
    fn counted(&self) -> (u64, u64) {
        (self.counts.0.load(Ordering::Relaxed), self.counts.1.load(Ordering::Relaxed))
    }

    /// How many it deals with while a publisher does what it can, in messages a second.
    async fn maximum(&self, servers: &Servers, broker: Broker) -> Fallible<f64> {
        if broker == Broker::Amqp {
            // The source declares its queue.
            let admin = AmqpAdmin::new(&servers.amqp)?;
            admin.ensure_queue(Queue::quorum(&self.target)).await?;
        }
        let publishing = Publishing::start(servers, broker, &self.target, 0, 0)?;
        until(DRAIN, || Ok(self.counted().0 > 0)).await?;
        sleep(WARM_UP).await;
        let (from, before) = (Instant::now(), self.counted().0);
        sleep(MAXIMUM_LASTS).await;
        let most = (self.counted().0 - before) as f64 / from.elapsed().as_secs_f64();
        let (confirmed, _) = tokio::task::block_in_place(|| publishing.stop())?;
        until(DRAIN * 5, || Ok(self.counted().0 >= confirmed)).await?;
        Ok(most)
    }

    async fn stop(self) -> Fallible<Run> {
        let _ = self.stop.send(());
        Ok(self.run.await??)
    }
}

/// Alive in this runtime.
fn tasks() -> f64 {
    Handle::current().metrics().num_alive_tasks() as f64
}

/// The number in the message key, `o-17`.
fn number(message: &Message) -> u64 {
    let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
    key.and_then(|key| key.strip_prefix("o-")).and_then(|number| number.parse().ok()).unwrap_or_default()
}

async fn until(limit: Duration, mut reached: impl FnMut() -> Fallible<bool>) -> Fallible<()> {
    let from = Instant::now();
    while !reached()? {
        if from.elapsed() > limit {
            return Err(format!("something that should have come did not within {limit:?}").into());
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
