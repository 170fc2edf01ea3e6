//! The runtime around the stack, with the store in memory.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use consumer_core::{Consumer, Report as Run, memory::MemoryStore, runtime::Stack};
use tokio::runtime::{Builder, Runtime};

use super::{
    replay::{self, Replay},
    stack::full,
};
use crate::{
    report::{Report, Row},
    rounds::median,
};

const MESSAGES: usize = 100_000;
const ROUNDS: usize = 9;

/// How deliveries are run.
#[derive(Debug, Clone, Copy)]
struct Mode {
    name: &'static str,
    lanes: Option<usize>,
    workers: usize,
}

const MODES: [Mode; 4] = [
    Mode { name: "tasks", lanes: None, workers: 1 },
    Mode { name: "2 lanes", lanes: Some(2), workers: 1 },
    Mode { name: "tasks, 2 workers", lanes: None, workers: 2 },
    Mode { name: "2 lanes, 2 workers", lanes: Some(2), workers: 2 },
];

pub(super) fn single() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime needs nothing that could be missing")
}

pub(super) fn measure(report: &mut Report) {
    let mut fresh = MODES.map(|_| Vec::new());
    let mut duplicates = MODES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (n, mode) in MODES.iter().enumerate() {
            let runtime = mode.runtime();
            let stack = full(MemoryStore::new());
            fresh[n].push(mode.time(&runtime, 0..MESSAGES, &stack));
            duplicates[n].push(mode.time(&runtime, 0..MESSAGES, &stack));
        }
    }
    for (n, mode) in MODES.iter().enumerate() {
        let mut add = |what: &str, times: &[Duration], goal: f64| {
            let per_message = median(times.to_vec()).as_nanos() as f64 / MESSAGES as f64;
            let row = Row::new(format!("runtime, memory store, {what} ({})", mode.name), per_message, "ns");
            report.add(if mode.workers == 1 { row.at_most(goal) } else { row });
        };
        add("fresh keys", &fresh[n], 1200.0);
        add("duplicates", &duplicates[n], 600.0);
    }
    for mode in MODES.iter().filter(|mode| mode.workers == 1) {
        let allocations = mode.allocations();
        let name = format!("runtime, memory store, fresh keys ({})", mode.name);
        report.add(Row::new(name, allocations, "allocations").at_most(2.0));
    }
}

impl Mode {
    fn runtime(self) -> Runtime {
        if self.workers == 1 {
            return single();
        }
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(self.workers).enable_all().build().expect("threads can be started")
    }

    fn time<S: Stack>(self, runtime: &Runtime, messages: Range<usize>, stack: &S) -> Duration {
        let count = messages.len();
        let consumer = self.consumer(Replay::new(replay::messages(messages)), stack);
        // In a task of its own, as a service has it; not on the thread that waits for it.
        let from = Instant::now();
        let run = runtime.block_on(async { tokio::spawn(consumer.run()).await });
        let took = from.elapsed();
        check(run, count);
        took
    }

    /// Of a second run, when the tables have their size: the store's growing would be counted otherwise.
    fn allocations(self) -> f64 {
        let runtime = self.runtime();
        let stack = full(MemoryStore::new());
        let half = MESSAGES / 2;
        self.time(&runtime, 0..half, &stack);
        let source = Replay::new(replay::messages(half..MESSAGES));
        let mut run = None;
        let info = allocation_counter::measure(|| {
            let consumer = self.consumer(source, &stack);
            run = Some(runtime.block_on(async { tokio::spawn(consumer.run()).await }));
        });
        if let Some(run) = run {
            check(run, half);
        }
        info.count_total as f64 / half as f64
    }

    fn consumer<S: Stack>(self, source: Replay, stack: &S) -> Consumer<Replay, S> {
        let consumer = Consumer::new(source, stack.clone());
        match self.lanes {
            Some(lanes) => consumer.lanes(lanes),
            None => consumer,
        }
    }
}

/// A figure of a run that lost something is worth nothing.
fn check<E: std::fmt::Debug, J: std::fmt::Debug>(run: Result<Result<Run, E>, J>, messages: usize) {
    match run {
        Ok(Ok(run)) => assert_eq!(run.processed + run.duplicates, messages as u64, "{run:?}"),
        other => panic!("the run failed: {other:?}"),
    }
}
