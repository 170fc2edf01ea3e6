//! A broker, a store, and processes that come and go.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_core::{
    CatchPanicLayer, Consumer, DeadLetterLayer, DedupLayer, Failure, Message, Outcome, Outgoing, Publisher,
    Report, RetryLayer,
    dedup::{Gate, StoreKey, protocol::State},
    memory::{CrashHandle, MemoryBroker, MemorySource, MemoryStore},
    runtime::{Health, Ordering, RunError},
};
use consumer_testing::naive::{Naive, Order, Seen};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tower::{ServiceBuilder, service_fn, util::BoxCloneService};

use crate::severed::Severed;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const LEASE: Duration = Duration::from_secs(30);

pub(crate) type Handling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Message) -> Handling + Send + Sync>;

/// Who consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Ours,
    Naive(Order),
    /// The naive consumer that has no dead letters: a failure goes back to the broker.
    Nacking(Order),
}

pub(crate) const CHECK: Who = Who::Naive(Order::CheckThenMark);
pub(crate) const MARK: Who = Who::Naive(Order::MarkThenHandle);
pub(crate) const MARK_ONLY: Who = Who::Naive(Order::MarkOnly);

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) broker: MemoryBroker,
    pub(crate) store: MemoryStore,
    seen: Seen,
    pub(crate) effects: Effects,
}

/// What the handlers have done, as an outside ledger sees it: id, attempt, epoch.
#[derive(Clone, Default)]
pub(crate) struct Effects(Arc<Mutex<Vec<(String, u32, u64)>>>);

impl Effects {
    pub(crate) fn put(&self, message: &Message) {
        self.0.lock().unwrap().push((id(message), message.attempt(), message.epoch()));
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(id, ..)| id.clone()).collect()
    }

    pub(crate) fn of(&self, id: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(effect, ..)| effect == id).count()
    }

    pub(crate) fn attempts(&self, id: &str) -> Vec<u32> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(effect, ..)| effect == id).map(|(_, attempt, _)| *attempt).collect()
    }

    pub(crate) fn epochs(&self, id: &str) -> Vec<u64> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(effect, ..)| effect == id).map(|(.., epoch)| *epoch).collect()
    }
}

pub(crate) fn id(message: &Message) -> String {
    message.id().map(|id| String::from_utf8_lossy(id).into_owned()).unwrap_or_default()
}

impl World {
    /// With the topics `t` and `dead`.
    pub(crate) fn new(partitions: usize) -> Self {
        let broker = MemoryBroker::new();
        broker.create_topic("t", partitions);
        broker.create_topic("dead", 1);
        Self { broker, store: MemoryStore::new(), seen: Seen::new(), effects: Effects::default() }
    }

    /// Starts or ends an outage of the store, ours or the naive one.
    pub(crate) fn set_store_down(&self, down: bool) {
        self.store.set_down(down);
        self.seen.set_down(down);
    }

    /// The store does what it is asked for, and the next `n` answers are lost.
    pub(crate) fn lose_replies(&self, n: usize) {
        self.store.lose_replies(n);
        self.seen.lose_replies(n);
    }

    pub(crate) async fn send(&self, id: &str) {
        self.send_as(id, "{}", None).await;
    }

    pub(crate) async fn send_as(&self, id: &str, payload: &str, key: Option<&str>) {
        let mut message = Message::builder().payload(payload.to_owned()).id(id.to_owned());
        if let Some(key) = key {
            message = message.key(key.to_owned());
        }
        self.broker.publisher().publish(Outgoing::new("t", message.build())).await.unwrap();
    }

    pub(crate) fn state(&self, id: &str) -> State {
        self.store.state(&StoreKey::new("mails".into(), id.to_owned().into()))
    }

    pub(crate) fn done(&self) -> bool {
        self.broker.lag("g", "t") == 0
    }

    pub(crate) fn dead(&self) -> Vec<Message> {
        self.broker.records("dead")
    }

    /// A handler whose effect comes after `seconds`.
    pub(crate) fn handler(&self, seconds: u32) -> Handler {
        let effects = self.effects.clone();
        Arc::new(move |message| {
            let effects = effects.clone();
            Box::pin(async move {
                sleep(seconds * SECOND).await;
                effects.put(&message);
                Ok(())
            })
        })
    }

    /// A handler that notes each call and then does as it is told.
    pub(crate) fn calling(&self, then: impl Fn(Message) -> Handling + Send + Sync + 'static) -> Handler {
        let effects = self.effects.clone();
        Arc::new(move |message| {
            effects.put(&message);
            then(message)
        })
    }

    pub(crate) fn process(&self, who: Who, nonce: u128, handler: Handler) -> Process {
        self.process_with(who, nonce, handler, |consumer| consumer)
    }

    pub(crate) fn process_with(
        &self,
        who: Who,
        nonce: u128,
        handler: Handler,
        set: impl FnOnce(Consumer<MemorySource, Stack>) -> Consumer<MemorySource, Stack>,
    ) -> Process {
        self.start(|line| self.stack(who, nonce, line, handler), set)
    }

    /// A process with a stack of its own.
    pub(crate) fn start(
        &self,
        stack: impl FnOnce(&Severed) -> Stack,
        set: impl FnOnce(Consumer<MemorySource, Stack>) -> Consumer<MemorySource, Stack>,
    ) -> Process {
        let source = self.broker.source("g", ["t"]);
        let (crash, line) = (source.crash_handle(), Severed::new(&self.store));
        let consumer = set(Consumer::new(source, stack(&line)));
        let health = consumer.health();
        let (stop, stopped) = oneshot::channel::<()>();
        let signal = async move {
            if stopped.await.is_err() {
                std::future::pending().await
            }
        };
        let task = tokio::spawn(consumer.shutdown(signal).run());
        Process { task, stop, crash, line, health }
    }

    fn stack(&self, who: Who, nonce: u128, line: &Severed, handler: Handler) -> Stack {
        let handler = service_fn(move |message| handler(message));
        let naive = |order, handler| Naive::new(order, self.seen.clone(), handler);
        match who {
            Who::Ours => BoxCloneService::new(
                ServiceBuilder::new()
                    .layer(DeadLetterLayer::new(self.broker.publisher(), "dead"))
                    .layer(DedupLayer::new(line.clone(), "mails").as_process(nonce, Gate::new()).lease(LEASE))
                    .layer(RetryLayer::exponential(SECOND).max_attempts(3))
                    .layer(CatchPanicLayer::new())
                    .service(handler),
            ),
            Who::Naive(order) => {
                BoxCloneService::new(naive(order, handler).dead_letters(self.broker.publisher(), "dead"))
            }
            Who::Nacking(order) => BoxCloneService::new(naive(order, handler)),
        }
    }
}

pub(crate) type Stack = BoxCloneService<Message, Outcome, Failure>;

pub(crate) struct Process {
    task: JoinHandle<Result<Report, RunError>>,
    stop: oneshot::Sender<()>,
    crash: CrashHandle,
    line: Severed,
    pub(crate) health: Health,
}

impl Process {
    /// SIGKILL: from now on nothing reaches the store or the broker.
    pub(crate) async fn kill(self) {
        self.line.kill();
        self.crash.crash();
        self.task.abort();
        assert!(self.task.await.is_err_and(|end| end.is_cancelled()));
    }

    /// Kills it at one of its next steps: what it asks of the store or publishes. That last one is done, if so `applied`,
    /// and never answered.
    pub(crate) fn kill_after(&self, steps: usize, applied: bool) {
        self.line.burn(steps, applied, self.crash.clone());
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.line.is_dead()
    }

    pub(crate) fn stall(&self, stalled: bool) {
        self.line.stall(stalled);
    }

    /// How many successes it recorded of keys that another owner had taken over.
    pub(crate) fn overlaps(&self) -> usize {
        self.line.overlaps()
    }

    pub(crate) fn lose_connection(&self) {
        self.crash.lose_connection();
    }

    pub(crate) async fn stopped(self) -> Report {
        let _ = self.stop.send(());
        let report = self.task.await.unwrap().unwrap();
        let Report { processed, duplicates, deferred, dead_lettered, discarded, returned, .. } = report;
        let out = processed + duplicates + deferred + dead_lettered + discarded + returned;
        assert_eq!(report.received, out, "{report}");
        report
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

/// Waits for it, at most an hour of the paused clock. Tells whether it came.
pub(crate) async fn comes(what: impl Fn() -> bool) -> bool {
    for _ in 0..36_000 {
        if what() {
            return true;
        }
        sleep(SECOND / 10).await;
    }
    false
}

pub(crate) fn ordered(
    order: Ordering,
) -> impl FnOnce(Consumer<MemorySource, Stack>) -> Consumer<MemorySource, Stack> {
    move |consumer| consumer.ordering(order)
}
