//! Many tasks at the dedup layer of one process, in one order after another. Every sleep ends when the scheduler likes.

use shuttle::{
    future::{JoinHandle, block_on, spawn, yield_now},
    rand::{Rng, thread_rng},
};

use super::*;
use crate::{message::wire, sync::explore::explore};

const MOMENT: Duration = Duration::from_millis(1);

/// Answers when the scheduler likes.
fn late() -> Spy {
    let store = Spy::new();
    store.delay_all(MOMENT);
    store
}

/// The calls of the handler: who runs now, and how often one has succeeded.
#[derive(Clone, Default)]
struct Calls {
    running: Count,
    suspects: Count,
    succeeded: Count,
}

/// Counts until dropped.
struct Counted(Count);

impl Counted {
    fn new(count: &Count) -> (Self, usize) {
        let now = count.add();
        (Self(count.clone()), now)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

impl Calls {
    /// Runs for a moment; nobody else may meanwhile.
    fn exclusive(&self, fails: bool) -> Handling {
        let this = self.clone();
        Box::pin(async move {
            let (_running, running) = Counted::new(&this.running);
            assert_eq!(running, 1, "two handlers run for one key");
            sleep(MOMENT).await;
            if fails {
                return Err(Failure::transient("not this time"));
            }
            this.succeeded.add();
            Ok(())
        })
    }

    /// Runs for a moment: beside others that are no suspects, or alone.
    async fn beside(&self, is_suspect: bool) {
        let _suspect = is_suspect.then(|| Counted::new(&self.suspects));
        let (_running, running) = Counted::new(&self.running);
        assert!(self.suspects.get() == 0 || running == 1, "somebody runs beside a suspect");
        sleep(MOMENT).await;
        assert!(self.suspects.get() == 0 || self.running.get() == 1, "somebody runs beside a suspect");
    }
}

/// A message on its way. What is left of a failure is its kind: the failure itself would keep its claim.
fn begin<S>(process: &Process<S>, id: &str) -> JoinHandle<Result<Outcome, FailureKind>>
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<crate::BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let call = process.call(message(id));
    spawn(async move { call.await.map_err(|failure| failure.kind()) })
}

/// When everything that was handed back has arrived, nothing is left.
fn assert_left_nothing<S>(process: &Process<S>)
where
    S: Service<Message, Response: Into<Outcome> + Send, Error: Into<crate::BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    block_on(async {
        process.dedup.shared.registry.flush().await.unwrap();
        while process.entries() > 0 {
            yield_now().await;
        }
    });
    process.assert_empty();
}

fn count(answers: &[Result<Outcome, FailureKind>], answer: Result<Outcome, FailureKind>) -> usize {
    answers.iter().filter(|given| **given == answer).count()
}

#[test]
fn of_those_with_one_key_one_runs_at_a_time_and_each_gets_an_answer() {
    explore(1, || {
        let (store, calls) = (late(), Calls::default());
        let handler = calls.clone();
        let process = process(&store, 1, move |_| handler.exclusive(thread_rng().gen_bool(0.3)));
        let tasks: Vec<_> = (0..3).map(|_| begin(&process, "a")).collect();
        let answers: Vec<_> = tasks.into_iter().map(|task| block_on(task).unwrap()).collect();
        assert!(calls.succeeded.get() <= 1, "the effect has happened twice");
        assert_eq!(count(&answers, Ok(Outcome::Processed)), calls.succeeded.get());
        assert_left_nothing(&process);
    });
}

#[test]
fn whoever_is_dropped_leaves_the_key_to_the_others() {
    explore(1, || {
        let (store, calls) = (late(), Calls::default());
        let handler = calls.clone();
        let process = process(&store, 1, move |_| handler.exclusive(false));
        let tasks: Vec<_> = (0..3).map(|_| begin(&process, "a")).collect();
        for task in &tasks[..2] {
            task.abort();
        }
        let registry = process.dedup.shared.registry.clone();
        let flushed = spawn(async move { registry.flush().await });
        let answers: Vec<_> = tasks.into_iter().filter_map(|task| block_on(task).ok()).collect();
        assert!(!answers.is_empty(), "nobody stopped the third");
        block_on(flushed).unwrap().unwrap();
        // One that was dropped behind the handler has had the effect without an answer.
        while block_on(begin(&process, "a")).unwrap() != Ok(Outcome::Duplicate) {}
        assert_eq!(calls.succeeded.get(), 1);
        assert_left_nothing(&process);
    });
}

#[test]
fn a_suspect_runs_alone_also_after_it_has_waited() {
    explore(1, || {
        let (store, calls) = (late(), Calls::default());
        for id in ["suspect", "suspect too"] {
            block_on(dies_with(&store.memory, id, 7, Mode::Alone));
        }
        let handler = calls.clone();
        let process = process(&store, 1, move |message| {
            let id = message.headers().get(wire::MESSAGE_ID);
            let (calls, is_suspect) = (handler.clone(), id.is_some_and(|id| id.starts_with(b"suspect")));
            Box::pin(async move {
                calls.beside(is_suspect).await;
                // A message may wait for two things at a time and has one place all the same.
                let wait = || message.while_waiting(sleep(MOMENT));
                match thread_rng().gen_range(0..3) {
                    0 => return Ok(()),
                    1 => wait().await,
                    _ => drop(tokio::join!(wait(), wait())),
                }
                calls.beside(is_suspect).await;
                Ok(())
            })
        });
        let tasks: Vec<_> = ["suspect", "a", "suspect too"].map(|id| begin(&process, id)).into();
        let answers: Vec<_> = tasks.into_iter().map(|task| block_on(task).unwrap()).collect();
        // Of one that gets no turn for as long as a lease the claim is lost.
        let lost = count(&answers, Err(FailureKind::Cancelled));
        assert_eq!(count(&answers, Ok(Outcome::Processed)) + lost, 3, "{answers:?}");
        assert_left_nothing(&process);
    });
}

#[test]
fn a_claim_that_another_process_takes_over_stops_its_handler_and_the_others_learn_what_became_of_it() {
    explore(10, || {
        let store = late();
        // Nothing but the loss of its claim ends it.
        let process = process(&store, 1, |_| Box::pin(std::future::pending()));
        let tasks: Vec<_> = (0..2).map(|_| begin(&process, "a")).collect();
        let other = store.memory.clone();
        let taken_over = spawn(async move {
            loop {
                other.expire_claims();
                match other.claim(request("a", 9)).await {
                    Ok(ClaimReply::Claimed(claim)) => {
                        break other.resolve(claim, Resolution::Completed, LEASE).await.unwrap();
                    }
                    reply => panic!("{reply:?}"),
                }
            }
        });
        let answers: Vec<_> = tasks.into_iter().map(|task| block_on(task).unwrap()).collect();
        assert_eq!(block_on(taken_over).unwrap(), Resolved::Applied);
        for answer in answers {
            match answer {
                Ok(outcome) => assert_eq!(outcome, Outcome::Duplicate),
                Err(kind) => assert_eq!(kind, FailureKind::Cancelled),
            }
        }
        assert_left_nothing(&process);
    });
}

#[test]
fn claims_are_renewed_however_often_the_renewal_task_has_been_idle() {
    explore(1, || {
        let store = late();
        let spy = store.clone();
        let process = process(&store, 1, move |_| {
            let (spy, before) = (spy.clone(), spy.renew_calls());
            Box::pin(async move {
                while spy.renew_calls() == before {
                    yield_now().await;
                }
                Ok(())
            })
        });
        let one_after_another = |ids: [&'static str; 2]| {
            let process = process.clone();
            spawn(async move {
                for id in ids {
                    // Whoever gets no turn for as long as a lease loses its claim.
                    let _ = process.call(message(id)).await;
                }
            })
        };
        for task in [one_after_another(["a", "b"]), one_after_another(["c", "d"])] {
            block_on(task).unwrap();
        }
        assert_left_nothing(&process);
    });
}
