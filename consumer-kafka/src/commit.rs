//! Commits off the polling thread.
//!
//! The driver calls nothing back for an asynchronous commit, and a commit whose answer is unknown is worth little. So
//! a thread of its own commits synchronously and tells the polling thread, which never waits for it.

use std::{
    io,
    sync::{
        Weak,
        mpsc::{self, TryRecvError},
    },
    thread::{self, JoinHandle, Thread},
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError as DriverError,
};

use crate::{assignment::Commit, rebalance::Callbacks};

pub(crate) type Answer = (Commit, Result<(), DriverError>);

/// The thread has ended by a panic.
#[derive(Debug)]
pub(crate) struct Gone;

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
                let outcome = consumer.context().commit(&consumer, commit);
                drop(consumer);
                if answer.send(outcome).is_err() {
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

    /// The answer to the last commit, once it is there.
    ///
    /// # Errors
    /// When the thread is gone, which it never should be.
    pub(crate) fn answer(&mut self) -> Result<Option<Answer>, Gone> {
        match self.answers.try_recv() {
            Ok(answer) => {
                self.busy = false;
                Ok(Some(answer))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Gone),
        }
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
