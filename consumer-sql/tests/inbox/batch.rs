//! Messages that share a transaction keep their own outcomes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use consumer_core::{Failure, FailureKind, Message, Outcome, TimeoutLayer, handler::handler};
use consumer_sql::{InboxLayer, Tx, inbox::Inbox};
use sqlx::Postgres;
use tokio::{sync::Semaphore, task::JoinHandle};
use tower::{Service, service_fn};

use super::bank::{Bank, Log, Under, book, message, run, sql_error, stack, until};

/// As in the other files; a batch is a batch in each.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::super::bank::BATCH.scope(32, super::$test::<sqlx::Sqlite>()).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: cargo xtask test"]
                async fn $test() {
                    super::super::bank::BATCH.scope(32, super::$test::<sqlx::Postgres>()).await;
                }
            )*
        }
    };
}

on_both! {
    one_that_fails_takes_none_of_the_others_along
    of_one_key_one_runs_at_a_time
    a_commit_that_fails_fails_all_and_then_only_its_cause
    a_message_that_is_dropped_or_panics_takes_none_of_the_others_along
    a_transaction_that_is_kept_costs_the_batch_and_nothing_more
    a_handler_that_says_commit_makes_no_duplicates_of_what_has_not_run
    who_loses_the_transaction_is_alone_next_time
    a_handler_that_hangs_holds_up_the_batch_for_its_time_out
}

type Answer = JoinHandle<Result<Outcome, Failure>>;

/// A stack whose first message holds up the others, so that they share the next transaction. What a message does is what
/// its payload says.
struct Batch<DB: Under> {
    bank: Bank<DB>,
    gate: Arc<Semaphore>,
    calls: Arc<AtomicU32>,
    kept: Arc<Mutex<Vec<Tx<DB>>>>,
    /// Held by messages that hang.
    hanging: Arc<Semaphore>,
}

impl<DB: Under> Batch<DB> {
    async fn open() -> Self {
        let bank = Bank::<DB>::open().await;
        let mut connection = bank.pool.acquire().await.unwrap();
        let cards =
            "CREATE TABLE cards (account INTEGER REFERENCES accounts (id) DEFERRABLE INITIALLY DEFERRED)";
        DB::execute(&mut connection, cards.into()).await.unwrap();
        let zero = || Arc::new(Semaphore::new(0));
        Self { bank, gate: zero(), calls: Arc::default(), kept: Arc::default(), hanging: zero() }
    }

    fn handler(
        &self,
    ) -> impl Service<Message, Response = (), Error = Failure, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
    + use<DB> {
        let (gate, calls, kept) = (self.gate.clone(), self.calls.clone(), self.kept.clone());
        let hanging = self.hanging.clone();
        service_fn(move |message: Message| {
            let (gate, kept, hanging) = (gate.clone(), kept.clone(), hanging.clone());
            calls.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut tx = Tx::<DB>::take(&message)?;
                book::<DB>(&mut tx, 5).await?;
                match &message.payload()[..] {
                    b"first" => gate.acquire().await.unwrap().forget(),
                    b"fails" => return Err(Failure::permanent("no")),
                    b"fails once" if message.attempt() == 1 => return Err(Failure::transient("no")),
                    b"swallows" => {
                        assert!(DB::execute(&mut tx, "UPDATE no_such_table SET x = 1".into()).await.is_err());
                    }
                    b"orphan" => {
                        DB::execute(&mut tx, "INSERT INTO cards (account) VALUES (17)".into()).await?;
                    }
                    b"commits" => DB::execute(&mut tx, "COMMIT".into()).await?,
                    b"drops a savepoint" => {
                        DB::begin_and_drop(&mut tx).await;
                        return Err(Failure::transient("no"));
                    }
                    b"panics" => panic!("broken"),
                    b"is cut by the server" => {
                        DB::execute(&mut tx, "SET LOCAL statement_timeout = '3s'".into()).await?;
                        DB::execute(&mut tx, "SELECT pg_sleep(10)".into()).await?;
                    }
                    b"keeps" => kept.lock().unwrap().push(tx),
                    b"hangs" => {
                        hanging.add_permits(1);
                        std::future::pending::<()>().await;
                    }
                    _ => {}
                }
                Ok(())
            }
        })
    }

    /// The first one in its handler, and the others behind it.
    async fn behind_the_first<S>(&self, stack: &Inbox<S, DB>, messages: Vec<Message>) -> (Answer, Vec<Answer>)
    where
        S: Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + 'static,
    {
        let spawn = |message: Message| {
            let stack = stack.clone();
            tokio::spawn(async move { run(&stack, message).await })
        };
        let before = self.calls.load(Ordering::SeqCst);
        let first = spawn(Message::builder().id(format!("first-{before}")).payload("first").build());
        until("the first is in its handler", || async { self.calls.load(Ordering::SeqCst) > before }).await;
        let mut others = Vec::new();
        for message in messages {
            let waiting = stack.waiting();
            others.push(spawn(message));
            until("it waits", || async { stack.waiting() > waiting }).await;
        }
        (first, others)
    }

    /// How they ended; the first has succeeded.
    async fn ended<S>(&self, stack: &Inbox<S, DB>, messages: Vec<Message>) -> Vec<Result<Outcome, Failure>>
    where
        S: Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + 'static,
    {
        let (first, others) = self.behind_the_first(stack, messages).await;
        self.gate.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap(), Outcome::Processed);
        let mut ended = Vec::new();
        for other in others {
            ended.push(other.await.unwrap());
        }
        ended
    }

    async fn sums(&self) -> (i64, i64) {
        (self.bank.balance().await, self.bank.records().await)
    }
}

fn does(id: &str, what: &str) -> Message {
    Message::builder().id(id.to_owned()).payload(what.to_owned()).build()
}

fn processed(answer: &Result<Outcome, Failure>) -> bool {
    matches!(answer, Ok(Outcome::Processed))
}

async fn one_that_fails_takes_none_of_the_others_along<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let what = ["books", "fails", "books", "swallows", "books"];
    let messages = what.iter().enumerate().map(|(n, what)| does(&n.to_string(), what)).collect();
    let ended = batch.ended(&stack, messages).await;
    // On SQLite a statement that fails leaves the transaction as it was.
    let swallowed = ended[3].is_ok();
    assert_eq!(swallowed, DB::NAME == "SQLite");
    assert!(ended[0].is_ok() && ended[2].is_ok() && ended[4].is_ok(), "{ended:?}");
    assert!(ended[1].as_ref().unwrap_err().is_permanent());
    if let Err(failure) = &ended[3] {
        assert!(failure.is_transient(), "{failure:?}");
    }
    let done = 4 + i64::from(swallowed);
    assert_eq!(batch.sums().await, (5 * done, done));
    assert!(processed(&run(&stack, does("1", "books")).await));
}

async fn of_one_key_one_runs_at_a_time<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let again = |id: &str| does(id, "fails once").with_attempt(2);
    let messages = vec![
        does("a", "books"),
        does("a", "books"),
        does("b", "fails once"),
        again("b"),
        does("c", "books"),
        does("c", "other"),
    ];
    let ended = batch.ended(&stack, messages).await;
    assert!(processed(&ended[0]) && matches!(ended[1], Ok(Outcome::Duplicate)), "{ended:?}");
    assert!(ended[2].is_err() && processed(&ended[3]), "{ended:?}");
    assert!(processed(&ended[4]), "{ended:?}");
    assert_eq!(ended[5].as_ref().unwrap_err().kind(), FailureKind::Conflict);
    assert_eq!(batch.sums().await, (20, 4));
}

async fn a_commit_that_fails_fails_all_and_then_only_its_cause<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let messages = || vec![does("a", "books"), does("b", "orphan"), does("c", "books")];
    for failure in batch.ended(&stack, messages()).await {
        let failure = failure.unwrap_err();
        assert!(failure.is_transient() && !sql_error(&failure).is_unavailable(), "{failure:?}");
    }
    assert_eq!(batch.sums().await, (5, 1));
    let ended = batch.ended(&stack, messages()).await;
    assert!(processed(&ended[0]) && ended[1].is_err() && processed(&ended[2]), "{ended:?}");
    assert_eq!(batch.sums().await, (20, 4));
}

async fn a_message_that_is_dropped_or_panics_takes_none_of_the_others_along<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let messages = ["books", "waits", "hangs", "panics", "books"]
        .iter()
        .enumerate()
        .map(|(n, what)| does(&n.to_string(), what));
    let (first, others) = batch.behind_the_first(&stack, messages.collect()).await;
    // One that has not begun, and one in its handler.
    others[1].abort();
    batch.gate.add_permits(1);
    assert!(processed(&first.await.unwrap()));
    batch.hanging.acquire().await.unwrap().forget();
    others[2].abort();
    let mut ended = Vec::new();
    for other in others {
        ended.push(other.await);
    }
    assert!(ended[1].as_ref().is_err_and(|error| error.is_cancelled()));
    assert!(ended[2].as_ref().is_err_and(|error| error.is_cancelled()));
    assert!(ended[3].as_ref().is_err_and(|error| error.is_panic()));
    for n in [0, 4] {
        assert!(processed(ended[n].as_ref().unwrap()), "{n}: {:?}", ended[n]);
    }
    assert_eq!(batch.sums().await, (15, 3));
}

async fn a_transaction_that_is_kept_costs_the_batch_and_nothing_more<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let messages = vec![does("a", "books"), does("b", "keeps"), does("c", "books")];
    let (first, others) = batch.behind_the_first(&stack, messages).await;
    batch.gate.add_permits(1);
    assert!(processed(&first.await.unwrap()));
    until("it is kept", || async { batch.kept.lock().unwrap().len() == 1 }).await;
    batch.kept.lock().unwrap().clear();
    let mut ended = Vec::new();
    for other in others {
        ended.push(other.await.unwrap());
    }
    assert!(ended[0].as_ref().unwrap_err().is_transient(), "{ended:?}");
    assert!(ended[1].as_ref().unwrap_err().is_permanent(), "{ended:?}");
    assert!(processed(&ended[2]), "{ended:?}");
    assert_eq!(batch.sums().await, (10, 2));
}

/// The records of those behind it were committed with it.
async fn a_handler_that_says_commit_makes_no_duplicates_of_what_has_not_run<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let log = Log::of_process();
    let consumer = format!("commits-{}", DB::NAME);
    let layer = InboxLayer::new(batch.bank.pool.clone(), &*consumer).tables(batch.bank.tables.clone());
    let stack = stack(&layer.batch(32).batches_at_once(1), batch.handler());
    let what = ["books", "commits", "books", "fails", "books"];
    let messages = || what.iter().enumerate().map(|(n, what)| does(&n.to_string(), what)).collect();
    let ended = batch.ended(&stack, messages()).await;
    for n in [0, 1] {
        assert!(ended[n].as_ref().unwrap_err().is_transient(), "{ended:?}");
    }
    assert!(processed(&ended[2]) && ended[3].is_err() && processed(&ended[4]), "{ended:?}");
    // SQLite: "no such savepoint".
    assert!(!sql_error(ended[0].as_ref().unwrap_err()).is_schema());
    assert_eq!(batch.sums().await, (25, 5));
    assert_eq!(log.count(&["ended the inbox's transaction", &consumer]), 1);
    for n in [0, 1] {
        let again = run(&stack, does(&n.to_string(), what[n])).await.unwrap();
        assert_eq!(again, Outcome::Duplicate, "its effect was committed");
    }
}

/// What is rolled back has no records to be taken back; another process may have written its own by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_savepoint_that_is_dropped_half_way_rolls_the_batch_back_and_no_more() {
    let batch = Batch::<Postgres>::open().await;
    let log = Log::of_process();
    let consumer = "drops-a-savepoint";
    let layer = InboxLayer::new(batch.bank.pool.clone(), consumer).tables(batch.bank.tables.clone());
    let stack = stack(&layer.batch(32).batches_at_once(1), batch.handler());
    let messages = vec![does("a", "books"), does("b", "drops a savepoint"), does("c", "books")];
    let ended = batch.ended(&stack, messages).await;
    assert!(ended[0].as_ref().unwrap_err().chain().contains("all of it is rolled back"), "{ended:?}");
    assert!(ended[1].is_err() && processed(&ended[2]), "{ended:?}");
    assert_eq!(batch.sums().await, (10, 2));
    assert_eq!(log.count(&["ended the inbox's transaction", consumer]), 0);
}

async fn who_loses_the_transaction_is_alone_next_time<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = stack(&batch.bank.layer(), batch.handler());
    let loses = || does("loses", "keeps");
    let ended = async |messages| {
        let (first, others) = batch.behind_the_first(&stack, messages).await;
        batch.gate.add_permits(1);
        assert!(processed(&first.await.unwrap()));
        until("it is kept", || async { batch.kept.lock().unwrap().len() == 1 }).await;
        batch.kept.lock().unwrap().clear();
        let mut ended = Vec::new();
        for other in others {
            ended.push(processed(&other.await.unwrap()));
        }
        ended
    };
    assert_eq!(ended(vec![does("a", "books"), loses(), does("b", "books")]).await, [false, false, true]);
    for n in 0..2 {
        let (before, behind) = (format!("before-{n}"), format!("behind-{n}"));
        let messages = vec![does(&before, "books"), loses(), does(&behind, "books")];
        assert_eq!(ended(messages).await, [true, false, true]);
    }
}

async fn a_handler_that_hangs_holds_up_the_batch_for_its_time_out<DB: Under>() {
    let batch = Batch::<DB>::open().await;
    let stack = tower::ServiceBuilder::new()
        .layer(batch.bank.layer())
        .layer(TimeoutLayer::new(Duration::from_millis(200)))
        .service(batch.handler());
    let messages = vec![does("a", "books"), does("b", "hangs"), does("c", "books")];
    let tasks: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let stack = stack.clone();
            tokio::spawn(async move { run(&stack, message).await })
        })
        .collect();
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await.unwrap());
    }
    assert!(processed(&ended[0]) && ended[1].is_err() && processed(&ended[2]), "{ended:?}");
    assert_eq!(batch.sums().await, (10, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_statement_that_is_left_behind_and_fails_takes_none_of_the_others_along() {
    super::bank::BATCH
        .scope(32, async {
            let batch = Batch::<Postgres>::open().await;
            let stack = tower::ServiceBuilder::new()
                .layer(batch.bank.layer())
                .layer(TimeoutLayer::new(Duration::from_secs(2)))
                .service(batch.handler());
            let messages = vec![does("a", "books"), does("b", "is cut by the server"), does("c", "books")];
            let (first, others) = batch.behind_the_first(&stack, messages).await;
            batch.gate.add_permits(1);
            first.await.unwrap().unwrap();
            let mut ended = Vec::new();
            for other in others {
                ended.push(other.await.unwrap());
            }
            assert!(processed(&ended[0]) && ended[1].is_err() && processed(&ended[2]), "{ended:?}");
            assert_eq!(batch.sums().await, (15, 3));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_two_batches_at_once_book_everything_once() {
    let bank = Bank::<Postgres>::open().await;
    let books = |mut tx: Tx<Postgres>| async move { book::<Postgres>(&mut tx, 5).await };
    let stack = stack(&bank.layer().batch(16).batches_at_once(2), handler(books));
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            let stack = stack.clone();
            // Each id four times, and near each other.
            tokio::spawn(async move { run(&stack, message(&(n / 4).to_string())).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap().unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Processed).count(), 100);
    assert_eq!((bank.balance().await, bank.records().await), (500, 100));
}
