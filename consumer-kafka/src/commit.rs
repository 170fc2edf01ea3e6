//! Commits off the polling thread.
//!
//! The driver calls nothing back for an asynchronous commit, and a commit whose answer is unknown is worth little. So
//! a thread of its own commits synchronously and tells the polling thread, which never waits for it.

use std::{
    io,
    sync::{Weak, mpsc},
    thread::{self, JoinHandle, Thread},
};

use rdkafka::{
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError as DriverError,
};

use crate::{partition::Commit, rebalance::Callbacks};

pub(crate) type Answer = (Commit, Result<(), DriverError>);

/// One commit at a time is on its way, so an older offset never overtakes a newer one.
#[derive(Debug)]
pub(crate) struct Committer {
    requests: mpsc::Sender<Commit>,
    answers: mpsc::Receiver<Answer>,
    busy: bool,
    thread: JoinHandle<()>,
}

impl Committer {
    /// `wake` is unparked at every answer.
    pub(crate) fn start(consumer: Weak<BaseConsumer<Callbacks>>, wake: Thread) -> io::Result<Self> {
        let (requests, requested) = mpsc::channel::<Commit>();
        let (answer, answers) = mpsc::channel();
        let serve = move || {
            for commit in requested {
                let Some(consumer) = consumer.upgrade() else { return };
                let outcome = consumer.commit(&commit.list(), CommitMode::Sync);
                drop(consumer);
                if answer.send((commit, outcome)).is_err() {
                    return;
                }
                wake.unpark();
            }
        };
        let thread = thread::Builder::new().name("kafka-commit".to_owned()).spawn(serve)?;
        Ok(Self { requests, answers, busy: false, thread })
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(crate) fn commit(&mut self, commit: Commit) {
        self.busy = self.requests.send(commit).is_ok();
    }

    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.busy = false;
        Some(answer)
    }

    /// Waits for the commit that is on its way.
    pub(crate) fn end(self) {
        let Self { requests, thread, .. } = self;
        drop(requests);
        if thread.join().is_err() {
            tracing::error!("the thread that commits to kafka has panicked");
        }
    }
}
