//! Carries out what is enqueued: N pipelines, each with a connection of its own, and one watcher of deadlines.
//!
//! A pipeline that is free takes whatever waits and sends it together; while it waits for the replies, the next batch
//! gathers. So batches grow with the load, and a single operation never waits for company.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use consumer_core::dedup::StoreError;
use tokio::time::{Instant, sleep};

use crate::{
    availability::Availability,
    clock::Clock,
    connection::{Connection, Opener, Settings},
    greeting::Greeting,
    operation::Operation,
    pipeline::Pipeline,
    queue::Queue,
    recent::Recent,
    stats::Counters,
};

/// How often waiting operations are looked at, as a part of the response deadline.
const WATCH: u32 = 8;
/// What could not be served is tried again at least this often.
const LONGEST_WATCH: Duration = Duration::from_millis(100);

/// What pipelines, watcher and handles share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) availability: Availability,
    pub(crate) clock: Clock,
    pub(crate) recent: Recent,
    pub(crate) counters: Counters,
    pub(crate) settings: Arc<Settings>,
    pub(crate) prefix: Vec<u8>,
    /// The runs that were warned of because they may evict.
    warned: Mutex<BTreeSet<String>>,
}

impl Shared {
    pub(crate) fn new(settings: Arc<Settings>, prefix: Vec<u8>, clock: Clock, pipelines: usize) -> Self {
        Self {
            queue: Queue::default(),
            availability: Availability::new(pipelines),
            clock,
            recent: Recent::default(),
            counters: Counters::default(),
            settings,
            prefix,
            warned: Mutex::default(),
        }
    }

    fn no_answer(&self, what: &'static str) -> StoreError {
        let error = StoreError::new(format!("{} {what}", self.settings.target));
        match self.availability.why() {
            Some(why) => error.with_source(why),
            None => error,
        }
    }

    /// Warns of a server that may evict, once for each of its runs.
    pub(crate) fn warn_of_eviction(&self, greeting: &Greeting) {
        let Some(evicts) = &greeting.evicts else { return };
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if !greeting.runs.is_subset(&warned) {
            warned.clone_from(&greeting.runs);
            tracing::warn!(
                redis = %self.settings.target,
                "redis may evict remembered ids ({evicts}): a duplicate of an evicted id runs the handler again; \
                 set maxmemory-policy to noeviction, or use a redis of its own for this"
            );
        }
    }

    /// Answers what is over with an error.
    pub(crate) fn fail_over_due(&self, operations: &mut [Operation]) {
        for operation in operations.iter_mut() {
            if operation.is_resolution() {
                tracing::error!(redis = %self.settings.target, "what became of a claim could not be recorded in time");
                operation.fail(|| self.no_answer("could not record it before it lost its meaning"));
            } else {
                operation.fail(|| self.no_answer("gave no answer in time"));
            }
        }
    }
}

/// Ends with the runtime; then nobody must wait for an answer any more.
struct UntilTheEnd(Arc<Shared>);

impl Drop for UntilTheEnd {
    fn drop(&mut self) {
        self.0.queue.kill();
    }
}

/// Starts the tasks on the current runtime. The first pipeline uses the connection that is already open.
pub(crate) fn spawn(shared: &Arc<Shared>, openers: Vec<Opener>, first: Connection, greeting: Greeting) {
    shared.warn_of_eviction(&greeting);
    let mut first = Some(first);
    for (number, opener) in openers.into_iter().enumerate() {
        let pipeline = Pipeline::new(number, shared.clone(), opener, first.take(), greeting.runs.clone());
        tokio::spawn(pipeline.run());
    }
    tokio::spawn(watch(shared.clone()));
}

/// Fails what waits for longer than it may. What is out is the pipelines' own business.
async fn watch(shared: Arc<Shared>) {
    let _end = UntilTheEnd(shared.clone());
    let pause = (shared.settings.response_timeout / WATCH).clamp(Duration::from_millis(1), LONGEST_WATCH);
    loop {
        match shared.queue.take_over_due(Instant::now()) {
            None if shared.queue.is_finished() => return,
            None => shared.queue.watched.notified().await,
            Some(mut over) => {
                if !over.is_empty() {
                    shared.fail_over_due(&mut over);
                    shared.queue.answered(over.iter());
                }
                sleep(pause).await;
            }
        }
    }
}
