//! The producer: a steady stream of messages, of each of which it is known whether the broker has taken it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use consumer_core::{DynPublisher, Message, Outgoing, Publisher};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    history::{Kind, Published},
    random::Random,
};

/// Keys; the messages of each are published one after the other.
pub(crate) const KEYS: usize = 24;
/// Between two messages of a key: about 60 messages a second in all.
const PAUSE: (u64, u64) = (200, 600);
const AGAIN: Duration = Duration::from_millis(100);
/// In percent of the messages.
const FLAKY: usize = 3;
const BOUNCING: usize = 2;
/// Published once more, at once or later.
const TWICE: usize = 10;
const LATER: usize = 5;

/// Publishes until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    published: Mutex<Vec<Published>>,
    copies: AtomicUsize,
}

/// What the tasks have in common.
#[derive(Debug, Clone)]
struct Producer {
    publisher: DynPublisher,
    topic: Arc<str>,
    seed: u64,
    /// Copies of a message have its key; else any, so that another consumer has them at the same time.
    ordered: bool,
    shared: Arc<Shared>,
}

impl Load {
    pub(crate) fn start(
        publisher: DynPublisher,
        topic: &str,
        seed: u64,
        ordered: bool,
        began: Instant,
    ) -> Self {
        let shared = Arc::new(Shared { began, published: Mutex::default(), copies: AtomicUsize::new(0) });
        let (stop, stopping) = watch::channel(false);
        let producer = Producer { publisher, topic: topic.into(), seed, ordered, shared: shared.clone() };
        let mut tasks = JoinSet::new();
        for key in 0..KEYS {
            tasks.spawn(producer.clone().publish_key(key, stopping.clone()));
        }
        Self { shared, stop, tasks }
    }

    pub(crate) fn published(&self) -> Vec<Published> {
        self.shared.lock().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.lock().len()
    }

    /// Messages that were published once more on purpose.
    pub(crate) fn copies(&self) -> usize {
        self.shared.copies.load(Ordering::Relaxed)
    }

    /// Ends, when all that was begun is confirmed; says whether that was within `limit`.
    pub(crate) async fn stop(&mut self, limit: Duration) -> bool {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        timeout(limit, all).await.is_ok()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Published>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Producer {
    async fn publish_key(self, key: usize, mut stopping: watch::Receiver<bool>) {
        let mut random = Random::new(self.seed, 100 + key as u64);
        let mut older = Vec::new();
        for nth in 0_usize.. {
            let pause = random.millis(PAUSE.0, PAUSE.1);
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                () = sleep(pause) => {}
            }
            let id = format!("{:x}-{key}-{nth}", self.seed);
            let kind = match random.below(100) {
                percent if percent < FLAKY => Kind::Flaky,
                percent if percent < FLAKY + BOUNCING => Kind::Bouncing,
                _ => Kind::Good,
            };
            let index = self.shared.begin(Published { id: id.clone(), key, kind, confirmed: None });
            self.publish(&id, kind, key).await;
            self.shared.confirm(index);
            let other_key = if self.ordered { key } else { random.below(KEYS) };
            if random.percent(TWICE) {
                self.publish_copy(&id, kind, other_key).await;
            }
            older.push((id, kind));
            if random.percent(LATER) {
                let (id, kind) = &older[random.below(older.len())];
                self.publish_copy(id, *kind, other_key).await;
            }
        }
    }

    async fn publish_copy(&self, id: &str, kind: Kind, key: usize) {
        self.shared.copies.fetch_add(1, Ordering::Relaxed);
        self.publish(id, kind, key).await;
    }

    /// Publishes until it is confirmed, as a producer does that must not lose its orders.
    async fn publish(&self, id: &str, kind: Kind, key: usize) {
        let domain = match kind {
            Kind::Good => "example.com",
            Kind::Flaky => "flaky.example",
            Kind::Bouncing => "bounces.example",
        };
        let payload = format!(r#"{{"order_id":"o-{id}","email":"ann@{domain}","total":1999}}"#);
        let message = Message::builder().payload(payload).key(format!("k-{key}")).id(id.to_owned()).build();
        while self.publisher.publish(Outgoing::copy(self.topic.clone(), message.clone())).await.is_err() {
            sleep(AGAIN).await;
        }
    }
}

impl Shared {
    fn begin(&self, published: Published) -> usize {
        let mut all = self.lock();
        all.push(published);
        all.len() - 1
    }

    fn confirm(&self, index: usize) {
        let now = self.began.elapsed();
        self.lock()[index].confirmed = Some(now);
    }
}
