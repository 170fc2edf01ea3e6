//! A service: the same stack for all three, around work that can be stopped from working.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use consumer::{
    BoxError, Consumer, DeadLetterLayer, DedupLayer, DynPublisher, Failure, Report, RetryLayer, TimeoutLayer,
    handler::{MessageId, State, handler},
    memory::MemoryStore,
    runtime::{RunError, Stack},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::ServiceBuilder;

use crate::broker::{Broker, dead, subscription};

/// A replay ends when nothing came for so long.
const IDLE: Duration = Duration::from_secs(3);

/// What a service does, as far as the story goes: it counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    handled: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    provider_is_down: Arc<AtomicBool>,
}

impl Work {
    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// Attempts that failed because the provider is down.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Lets what the work needs fail, or recover.
    pub(crate) fn set_provider_down(&self, down: bool) {
        self.provider_is_down.store(down, Ordering::Relaxed);
    }
}

async fn handle(MessageId(_event): MessageId, State(work): State<Work>) -> Result<(), Failure> {
    if work.provider_is_down.load(Ordering::Relaxed) {
        work.refused.fetch_add(1, Ordering::Relaxed);
        return Err(Failure::transient("the provider is down"));
    }
    work.handled.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// `scope` names whose effects are remembered: the same event is new to each service, and to each replay.
fn stack(
    dead_letters: DynPublisher,
    dead: String,
    store: &MemoryStore,
    scope: &str,
    work: &Work,
) -> impl Stack {
    ServiceBuilder::new()
        .layer(DeadLetterLayer::new(dead_letters, dead))
        .layer(DedupLayer::new(store.clone(), scope))
        // An outage ends, and until then these messages only wait: attempts without end, seldom.
        .layer(
            RetryLayer::exponential(Duration::from_millis(50))
                .cap(Duration::from_millis(500))
                .max_attempts(u32::MAX),
        )
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .service(handler(handle).with_state(work.clone()))
}

/// A service that runs.
pub(crate) struct Service {
    pub(crate) work: Work,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<Report, RunError>>,
}

impl Service {
    pub(crate) fn start(
        broker: &dyn Broker,
        topic: &str,
        name: &str,
        store: &MemoryStore,
    ) -> Result<Self, BoxError> {
        let work = Work::default();
        let scope = subscription(topic, name);
        let stack = stack(broker.dead_letters()?, dead(topic, name), store, &scope, &work);
        let (stop, stopped) = oneshot::channel::<()>();
        let consumer = Consumer::new(broker.subscribe(name)?, stack)
            .name(name)
            // Dropped, it asks for the stop as well.
            .shutdown(async { drop(stopped.await) });
        Ok(Self { work, stop, running: tokio::spawn(consumer.run()) })
    }

    /// Lets what runs finish, and leaves.
    pub(crate) async fn stop(self) -> Result<(), BoxError> {
        drop(self.stop);
        self.running.await??;
        Ok(())
    }
}

/// Handles all events once more for one service; how many those were, or `None` where the broker has no log of them.
pub(crate) async fn replay(
    broker: &dyn Broker,
    topic: &str,
    name: &str,
    store: &MemoryStore,
    replay: &str,
) -> Result<Option<u64>, BoxError> {
    let Some(source) = broker.replay(name, replay)? else { return Ok(None) };
    let work = Work::default();
    let scope = format!("{}@{replay}", subscription(topic, name));
    let stack = stack(broker.dead_letters()?, dead(topic, name), store, &scope, &work);
    Consumer::new(source, stack).name(scope).stop_when_idle(IDLE).run().await?;
    Ok(Some(work.handled()))
}
