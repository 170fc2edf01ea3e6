//! Where deliveries run: each in a task of its own, or many on a few lanes.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use pin_project_lite::pin_project;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, error::SendError, unbounded_channel},
    task::JoinHandle,
};

use super::{
    Stack,
    finished::Place,
    present::{Again, present},
};
use crate::scope::Scope;

/// One presentation to be run.
pub(super) struct Job<S> {
    pub(super) stack: S,
    pub(super) place: Place,
    pub(super) scope: Arc<Scope>,
    pub(super) presentations: u32,
}

pub(super) enum Executor<S> {
    /// A task for each delivery; a handler that blocks holds up nobody else.
    Tasks { slots: Vec<Option<(JoinHandle<()>, Arc<Scope>)>>, free: Vec<usize>, again: Again },
    /// Lanes; jobs are handed over in batches.
    Lanes { lanes: Vec<Lane<S>>, next: usize, again: Again },
}

pub(super) struct Lane<S> {
    batch: Vec<Job<S>>,
    sender: UnboundedSender<Command<S>>,
    task: JoinHandle<()>,
}

enum Command<S> {
    Run(Vec<Job<S>>),
    /// Drop what belongs to scopes that are over.
    Sweep,
}

impl<S: Stack> Executor<S> {
    pub(super) fn new(lanes: Option<usize>, again: Again) -> Self {
        match lanes {
            None => Executor::Tasks { slots: Vec::new(), free: Vec::new(), again },
            Some(count) => {
                let lanes = (0..count).map(|_| Lane::start(again)).collect();
                Executor::Lanes { lanes, next: 0, again }
            }
        }
    }

    /// A slot for a job that is about to start.
    pub(super) fn slot(&mut self) -> usize {
        match self {
            Executor::Tasks { slots, free, .. } => free.pop().unwrap_or_else(|| {
                slots.push(None);
                slots.len() - 1
            }),
            Executor::Lanes { .. } => 0,
        }
    }

    pub(super) fn start(&mut self, slot: usize, job: Job<S>) {
        match self {
            Executor::Tasks { slots, again, .. } => {
                let scope = job.scope;
                let task = tokio::spawn(present(job.stack, job.place, *again, job.presentations));
                slots[slot] = Some((task, scope));
            }
            Executor::Lanes { lanes, next, .. } => {
                lanes[*next].batch.push(job);
                *next = (*next + 1) % lanes.len();
            }
        }
    }

    pub(super) fn finished(&mut self, slot: usize) {
        if let Executor::Tasks { slots, free, .. } = self {
            slots[slot] = None;
            free.push(slot);
        }
    }

    /// Hands the batches over.
    pub(super) fn flush(&mut self) {
        if let Executor::Lanes { lanes, again, .. } = self {
            for lane in lanes.iter_mut().filter(|lane| !lane.batch.is_empty()) {
                let batch = std::mem::take(&mut lane.batch);
                if let Err(SendError(unsent)) = lane.sender.send(Command::Run(batch)) {
                    tracing::error!("a lane has panicked: another one takes its place");
                    *lane = Lane::start(*again);
                    // Nobody has dropped the receiver of a lane that has just been started.
                    let _ = lane.sender.send(unsent);
                }
            }
        }
    }

    /// Drops what belongs to scopes that are over.
    pub(super) fn sweep(&mut self) {
        self.flush();
        match self {
            Executor::Tasks { slots, .. } => {
                for (task, _) in slots.iter().flatten().filter(|(_, scope)| scope.is_over()) {
                    task.abort();
                }
            }
            Executor::Lanes { lanes, .. } => {
                for lane in lanes {
                    let _ = lane.sender.send(Command::Sweep);
                }
            }
        }
    }
}

/// Dropping the consumer drops what runs.
impl<S> Drop for Executor<S> {
    fn drop(&mut self) {
        match self {
            Executor::Tasks { slots, .. } => slots.iter().flatten().for_each(|(task, _)| task.abort()),
            Executor::Lanes { lanes, .. } => lanes.iter().for_each(|lane| lane.task.abort()),
        }
    }
}

impl<S: Stack> Lane<S> {
    fn start(again: Again) -> Self {
        let (sender, receiver) = unbounded_channel();
        Self { batch: Vec::new(), sender, task: tokio::spawn(run(receiver, again)) }
    }
}

async fn run<S: Stack>(mut commands: UnboundedReceiver<Command<S>>, again: Again) {
    let mut running = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            match commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Run(jobs))) => {
                    for job in jobs {
                        let work = present(job.stack, job.place, again, job.presentations);
                        running.push(Guarded { work: Some(work), scope: job.scope, waker: None });
                    }
                }
                Poll::Ready(Some(Command::Sweep)) => {
                    for mut work in Pin::new(&mut running).iter_pin_mut() {
                        work.as_mut().sweep();
                    }
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
        Poll::Pending
    })
    .await;
}

pin_project! {
    /// One presentation on a lane: a panic ends it alone, and a sweep can drop it.
    struct Guarded<F> {
        #[pin]
        work: Option<F>,
        scope: Arc<Scope>,
        waker: Option<Waker>,
    }
}

impl<F> Guarded<F> {
    fn sweep(self: Pin<&mut Self>) {
        let this = self.project();
        if this.scope.is_over() {
            set_down(this.work);
            if let Some(waker) = this.waker.take() {
                waker.wake();
            }
        }
    }
}

/// What the work holds may panic when it is dropped, and must not take the lane along.
fn set_down<F>(mut work: Pin<&mut Option<F>>) {
    if catch_unwind(AssertUnwindSafe(|| work.set(None))).is_err() {
        tracing::error!("a handler panicked while it was dropped");
    }
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(work) = this.work.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
            Ok(Poll::Pending) => {
                if !this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *this.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            // Dropping the work after a panic puts its message into the driver's inbox.
            Ok(Poll::Ready(())) | Err(_) => {
                set_down(this.work);
                Poll::Ready(())
            }
        }
    }
}
