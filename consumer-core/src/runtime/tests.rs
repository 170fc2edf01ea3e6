//! The runtime on the paused clock, with the in-memory broker and with a source that follows a script.

mod basics;
mod health;
mod holding;
mod ordering;
mod scopes;
mod scripted;
mod shutdown;
mod told;

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::util::{ServiceFn, service_fn};

use super::*;
use crate::{
    Failure, Message, Outgoing, Publisher,
    memory::{MemoryBroker, MemorySource},
};

const SECOND: Duration = Duration::from_secs(1);

/// A broker with the topic `t` and `messages` in it, whose ids and payloads are their numbers. They have no key, so
/// they go to the partitions in turn.
async fn broker(partitions: usize, messages: usize) -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("t", partitions);
    publish(&broker, 0..messages).await;
    broker
}

async fn publish(broker: &MemoryBroker, numbers: impl IntoIterator<Item = usize>) {
    for n in numbers {
        let message = Message::builder().payload(n.to_string()).id(n.to_string()).build();
        broker.publisher().publish(Outgoing::new("t", message)).await.unwrap();
    }
}

fn source(broker: &MemoryBroker) -> MemorySource {
    broker.source("g", ["t"])
}

fn number(message: &Message) -> usize {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

/// What handlers write down: their message, and when on the paused clock.
#[derive(Clone)]
struct Log {
    start: Instant,
    calls: Arc<Mutex<Vec<(usize, u64)>>>,
}

impl Log {
    fn new() -> Self {
        Self { start: Instant::now(), calls: Arc::default() }
    }

    fn call(&self, message: &Message) {
        self.calls.lock().unwrap().push((number(message), self.start.elapsed().as_secs()));
    }

    fn len(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn numbers(&self) -> Vec<usize> {
        self.calls.lock().unwrap().iter().map(|(n, _)| *n).collect()
    }

    /// The seconds at which this message was handled.
    fn times_of(&self, n: usize) -> Vec<u64> {
        self.calls.lock().unwrap().iter().filter(|(m, _)| *m == n).map(|(_, at)| *at).collect()
    }
}

/// How many run at once, and the most that ever did.
#[derive(Clone, Default)]
struct Concurrency {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Running(Concurrency);

impl Concurrency {
    fn enter(&self) -> Running {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        Running(self.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

/// A consumer that runs, and how to stop it.
struct Run {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Report, RunError>>,
    health: Health,
}

impl Run {
    fn start<Src: Source, S: Stack>(consumer: Consumer<Src, S>) -> Self {
        let health = consumer.health();
        let (stop, stopped) = oneshot::channel::<()>();
        let signal = async move {
            if stopped.await.is_err() {
                std::future::pending().await
            }
        };
        let task = tokio::spawn(consumer.shutdown(signal).run());
        Self { stop: Some(stop), task, health }
    }

    fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    async fn report(self) -> Report {
        let report = self.task.await.unwrap().unwrap();
        balanced(&report);
        report
    }

    async fn stopped(mut self) -> Report {
        self.stop();
        self.report().await
    }
}

/// What came in went out.
fn balanced(report: &Report) {
    let Report { received, processed, duplicates, deferred, dead_lettered, discarded, returned, .. } =
        *report;
    let out = processed + duplicates + deferred + dead_lettered + discarded + returned;
    assert_eq!(received, out, "{report}");
}

/// Lets `what` happen, at most for an hour of the paused clock.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..36_000 {
        if what() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not happen within an hour");
}

fn handle<F, Fut>(f: F) -> ServiceFn<F>
where
    F: FnMut(Message) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    service_fn(f)
}
