//! This framework, with all layers and its defaults.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use consumer_core::{Consumer, Delivery, Demand, Event, Report as Run, Settlement, Source, SourceError, Tag};
use consumer_kafka::KafkaSource;
use dedup_redis::RedisStore;
use tokio::sync::oneshot;

use super::{Fallible, Servers, topic::Topic};
use crate::in_process::full_stack;

/// What a run of a whole topic gave.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) rate: f64,
    pub(super) run: Run,
    pub(super) commands: u64,
    pub(super) round_trips: u64,
}

/// Consumes the whole topic. Groups with one dedup scope share what is remembered.
pub(super) async fn run(
    servers: &Servers,
    topic: &Topic,
    group: &str,
    max_in_flight: usize,
) -> Fallible<Ran> {
    let source = KafkaSource::builder(&servers.kafka).group(group).topic(&topic.name).build()?;
    drive(servers, source, topic.messages, max_in_flight, None).await
}

/// Consumes so many messages, in lanes if so many are given.
pub(super) async fn drive(
    servers: &Servers,
    source: impl Source,
    messages: usize,
    max_in_flight: usize,
    lanes: Option<usize>,
) -> Fallible<Ran> {
    let store = RedisStore::connect(servers.redis.as_str()).await?;
    let times = Arc::new(Mutex::new(Times::default()));
    let (done, all_done) = oneshot::channel();
    let timed = Timed { source, left: messages, done: Some(done), times: times.clone() };
    let before = store.stats();
    let consumer = Consumer::new(timed, full_stack(store.clone()))
        .max_in_flight(max_in_flight)
        .shutdown(async move { drop(all_done.await) });
    let consumer = match lanes {
        Some(lanes) => consumer.lanes(lanes),
        None => consumer,
    };
    let run = tokio::spawn(consumer.run()).await??;
    let after = store.stats();
    let (first, last) = {
        let times = times.lock().unwrap_or_else(PoisonError::into_inner);
        (times.first.ok_or("nothing came")?, times.last.ok_or("not all came")?)
    };
    if run.processed + run.duplicates != messages as u64 {
        return Err(format!("not everything was dealt with: {run:?}").into());
    }
    Ok(Ran {
        rate: messages as f64 / (last - first).as_secs_f64(),
        run,
        commands: after.commands - before.commands,
        round_trips: after.round_trips - before.round_trips,
    })
}

/// When the first message came and the last one was settled: joining the group is not measured.
#[derive(Debug, Default)]
struct Times {
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Looks at what passes and says when all is settled.
struct Timed<S> {
    source: S,
    left: usize,
    done: Option<oneshot::Sender<()>>,
    times: Arc<Mutex<Times>>,
}

impl<S: Source> Source for Timed<S> {
    fn configure(&mut self, demand: Demand) -> Result<(), SourceError> {
        self.source.configure(demand)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        let event = self.source.poll_event(cx, room, out);
        if !out.is_empty() {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.first.get_or_insert_with(Instant::now);
        }
        event
    }

    fn settle(&mut self, tag: Tag, how: Settlement) {
        self.source.settle(tag, how);
        self.left = self.left.saturating_sub(1);
        if self.left == 0
            && let Some(done) = self.done.take()
        {
            self.times.lock().unwrap_or_else(PoisonError::into_inner).last = Some(Instant::now());
            let _ = done.send(());
        }
    }

    fn release(&mut self, scope: u64) {
        self.source.release(scope);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.source.poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.source.poll_close(cx)
    }

    fn lag(&self) -> Option<u64> {
        self.source.lag()
    }
}
