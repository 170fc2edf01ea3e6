//! A consumer at work, stopped by hand.

use std::{sync::Arc, time::Duration};

use consumer_amqp::AmqpSourceBuilder;
use consumer_core::{
    Consumer, Report,
    runtime::{Health, Ordering, Stack},
};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use super::LIMIT;

pub(crate) struct Run {
    stop: Arc<Notify>,
    pub(crate) health: Health,
    done: JoinHandle<Report>,
}

impl Run {
    pub(crate) fn start(source: AmqpSourceBuilder, stack: impl Stack) -> Self {
        Self::start_ordered(source, stack, Ordering::None)
    }

    pub(crate) fn start_ordered(source: AmqpSourceBuilder, stack: impl Stack, ordering: Ordering) -> Self {
        super::log();
        let stop = Arc::new(Notify::new());
        let told = stop.clone();
        let consumer = Consumer::new(source.build().unwrap(), stack)
            .ordering(ordering)
            .drain_timeout(Duration::from_millis(500))
            .shutdown(async move { told.notified().await });
        let health = consumer.health();
        let done = tokio::spawn(async move { consumer.run().await.unwrap() });
        Self { stop, health, done }
    }

    pub(crate) async fn stop(self) -> Report {
        self.stop.notify_one();
        timeout(LIMIT, self.done).await.expect("it stops").unwrap()
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}
