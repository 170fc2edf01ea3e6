//! How an order of the threads is looked for in which something goes wrong.

use shuttle::{
    Config, FailurePersistence, MaxSteps, Runner,
    scheduler::{PctScheduler, RandomScheduler},
};

/// Changes of priority that the second scheduler makes in a run: enough for what takes three threads to go wrong.
const CHANGES: usize = 3;

/// Runs `test` under a scheduler that chooses at random, and under one that lets the first in a random ranking run and
/// changes that a few times: each as often as `CONCURRENCY_SCHEDULES` says, and `times` as often where what goes wrong is
/// rare. That nobody can go on is a failure, and so is a run without an end.
pub(crate) fn explore(times: usize, test: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules: usize =
        std::env::var("CONCURRENCY_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let schedules = schedules * times;
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.failure_persistence = FailurePersistence::Print;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new(schedules), config.clone()).run(test.clone());
    Runner::new(PctScheduler::new(CHANGES, schedules), config).run(test);
}
