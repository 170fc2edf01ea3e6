//! What the database does to a message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use consumer_core::{Failure, Message, Outcome, handler::handler};
use consumer_sql::{InboxLayer, Tables, Tx, migrate};
use consumer_testing::proxy::{Direction, Proxy};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Sqlite, SqlitePool, postgres::PgConnectOptions};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use xtask::servers::Postgres as Server;

use super::bank::{Bank, Log, Under, book, message, run, sql_error, stack, until};
use crate::on_both;

on_both! {
    a_commit_that_is_refused_is_no_success
    missing_tables_are_named_with_what_to_run
    a_full_pool_is_waited_for
}

async fn books<DB: Under>(mut tx: Tx<DB>) -> Result<(), Failure> {
    book::<DB>(&mut tx, 5).await
}

async fn a_commit_that_is_refused_is_no_success<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let mut connection = bank.pool.acquire().await.unwrap();
    let child = "CREATE TABLE cards (account INTEGER REFERENCES accounts (id) DEFERRABLE INITIALLY DEFERRED)";
    DB::execute(&mut connection, child.into()).await.unwrap();
    drop(connection);
    let orphan = |mut tx: Tx<DB>| async move {
        book::<DB>(&mut tx, 5).await?;
        DB::execute(&mut tx, "INSERT INTO cards (account) VALUES (17)".into()).await?;
        Ok::<_, Failure>(())
    };
    let failure = run(&stack(&bank.layer(), handler(orphan)), message("a")).await.unwrap_err();
    assert!(failure.is_transient() && failure.chain().contains("could not be committed"), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
    for id in ["a", "b", "c", "d", "e"] {
        run(&stack(&bank.layer(), handler(books::<DB>)), message(id)).await.unwrap();
    }
    assert_eq!((bank.balance().await, bank.records().await), (25, 5));
}

async fn missing_tables_are_named_with_what_to_run<DB: Under>() {
    let bank = Bank::<DB>::without_tables().await;
    let failure = run(&stack(&bank.layer(), handler(books::<DB>)), message("a")).await.unwrap_err();
    let error = sql_error(&failure);
    assert!(failure.is_transient() && error.is_schema(), "{failure:?}");
    assert!(error.to_string().contains("consumer-admin migrate"), "{error}");
    assert!(bank.layer().check().await.unwrap_err().is_schema());
    let mut connection = bank.pool.acquire().await.unwrap();
    migrate::<DB>(&mut *connection, &bank.tables).await.unwrap();
    drop(connection);
    bank.layer().check().await.unwrap();
    assert_eq!(bank.records().await, 0, "the check leaves nothing behind");
}

async fn a_full_pool_is_waited_for<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let narrow = DB::pool(&bank.home, 1, Duration::from_millis(20));
    let mut taken = None;
    // It has to be made first, which may take longer than that.
    while taken.is_none() {
        taken = narrow.acquire().await.ok();
    }
    let layer = bank.layer_on(narrow.clone());
    let mut stack = stack(&layer, handler(books::<DB>));
    let waiting = tokio::spawn({
        let stack = stack.clone();
        async move { run(&stack, message("a")).await }
    });
    // The source is paused, and no attempt has failed.
    let is_paused = |stack: &mut consumer_sql::inbox::Inbox<_, DB>| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        Service::<Message>::poll_ready(stack, &mut cx).is_pending()
    };
    until("the stack is not ready", || {
        let paused = is_paused(&mut stack);
        async move { paused }
    })
    .await;
    assert!(!waiting.is_finished());
    // What waits is handed back when it is asked for.
    let token = CancellationToken::new();
    let mut called = stack.clone();
    let asked = tokio::spawn(called.call(message("b").with_cancellation(token.clone())));
    token.cancel();
    assert!(asked.await.unwrap().unwrap_err().is_cancelled());
    drop(taken);
    assert_eq!(waiting.await.unwrap().unwrap(), Outcome::Processed);
    stack.ready().await.unwrap();
    assert_eq!(bank.balance().await, 5);
}

/// COMMIT of a transaction in which a statement has failed answers ROLLBACK, without an error.
#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_statement_that_failed_unnoticed_is_no_success() {
    let bank = Bank::<Postgres>::open().await;
    let swallows = |mut tx: Tx<Postgres>| async move {
        book::<Postgres>(&mut tx, 5).await?;
        assert!(sqlx::query("SELECT 1 / 0").execute(&mut *tx).await.is_err());
        Ok::<_, Failure>(())
    };
    let failure = run(&stack(&bank.layer(), handler(swallows)), message("a")).await.unwrap_err();
    assert!(failure.is_transient() && failure.chain().contains("could not be committed"), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
    let ends = |word: &'static str| {
        move |mut tx: Tx<Postgres>| async move {
            book::<Postgres>(&mut tx, 5).await?;
            sqlx::query(word).execute(&mut *tx).await?;
            Ok::<_, Failure>(())
        }
    };
    let failure = run(&stack(&bank.layer(), handler(ends("ROLLBACK"))), message("a")).await.unwrap_err();
    assert!(failure.is_transient(), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
}

/// On SQLite a statement that fails leaves the transaction as it was.
#[tokio::test]
async fn sqlite_a_statement_that_failed_unnoticed_changes_nothing() {
    let bank = Bank::<Sqlite>::open().await;
    let swallows = |mut tx: Tx<Sqlite>| async move {
        book::<Sqlite>(&mut tx, 5).await?;
        assert!(sqlx::query("INSERT INTO accounts (id) VALUES (0)").execute(&mut *tx).await.is_err());
        Ok::<_, Failure>(())
    };
    assert_eq!(
        run(&stack(&bank.layer(), handler(swallows)), message("a")).await.unwrap(),
        Outcome::Processed
    );
    let ends = |mut tx: Tx<Sqlite>| async move {
        book::<Sqlite>(&mut tx, 5).await?;
        sqlx::query("ROLLBACK").execute(&mut *tx).await?;
        Ok::<_, Failure>(())
    };
    let failure = run(&stack(&bank.layer(), handler(ends)), message("b")).await.unwrap_err();
    assert!(failure.is_transient() && failure.chain().contains("could not be committed"), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (5, 1));
}

#[tokio::test]
async fn sqlite_a_file_that_is_read_only_is_told() {
    let bank = Bank::<Sqlite>::open().await;
    let file = bank.home.path().join("bank.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let layer = InboxLayer::new(SqlitePool::connect_lazy_with(options), "bank");
    let failure = run(&stack(&layer, handler(books::<Sqlite>)), message("a")).await.unwrap_err();
    let error = sql_error(&failure);
    assert!(error.is_denied() && error.to_string().contains("read only"), "{error}");
    assert!(layer.check().await.unwrap_err().is_denied());
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_missing_rights_are_told() {
    let bank = Bank::<Postgres>::open().await;
    let schema = bank.home.clone();
    let role = format!("CREATE ROLE r_{schema} LOGIN; GRANT USAGE ON SCHEMA {schema} TO r_{schema}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(role)).execute(&bank.pool).await.unwrap();
    let options: PgConnectOptions = xtask::servers::shared_postgres().parse().unwrap();
    let stranger = options.clone().username(&format!("r_{schema}"));
    let standby = options.options([("default_transaction_read_only", "on"), ("search_path", &schema)]);
    let layer =
        |options| InboxLayer::new(PgPool::connect_lazy_with(options), "bank").tables(bank.tables.clone());
    let stranger = layer(stranger);
    let failure = run(&stack(&stranger, handler(books::<Postgres>)), message("a")).await.unwrap_err();
    let error = sql_error(&failure);
    assert!(error.is_denied() && error.to_string().contains("may not do this"), "{error}");
    assert!(stranger.check().await.unwrap_err().is_denied());
    let error = layer(standby).check().await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("read only"), "{error}");
}

/// What ends the wait for a concurrent first one says nothing about the message, nor about the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_time_limit_or_a_clash_while_waiting_for_another_is_no_attempt() {
    let bank = Bank::<Postgres>::open().await;
    let log = Log::of_process();
    for (n, (option, value)) in [
        ("lock_timeout", "50ms"),
        ("statement_timeout", "50ms"),
        ("default_transaction_isolation", "serializable"),
    ]
    .into_iter()
    .enumerate()
    {
        for batch in [1, 8] {
            let gate = Arc::new(Semaphore::new(0));
            let begun = Arc::new(AtomicU32::new(0));
            let waits = {
                let (gate, begun) = (gate.clone(), begun.clone());
                move |mut tx: Tx<Postgres>| {
                    let (gate, begun) = (gate.clone(), begun.clone());
                    async move {
                        book::<Postgres>(&mut tx, 5).await?;
                        begun.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        Ok::<_, Failure>(())
                    }
                }
            };
            let options: PgConnectOptions = xtask::servers::shared_postgres().parse().unwrap();
            let limited = PgPool::connect_lazy_with(
                options.options([("search_path", bank.home.as_str()), (option, value)]),
            );
            let consumer = format!("limited-by-{option}-{batch}");
            let layer = |pool| InboxLayer::new(pool, &*consumer).tables(bank.tables.clone()).batch(batch);
            let first = stack(&layer(bank.pool.clone()), handler(waits));
            let second = stack(&layer(limited), handler(books::<Postgres>));
            let first = tokio::spawn(async move { run(&first, message("a")).await });
            until("the first has begun", || async { begun.load(Ordering::SeqCst) == 1 }).await;
            let second = tokio::spawn(async move { run(&second, message("a")).await });
            let waits_for_lock = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{}%'",
                bank.home
            );
            let told = || log.count(&["a message waits for others", &consumer]);
            until("the second has met it", || async {
                // A clash is found out when the first is committed.
                let waits = Postgres::number(&bank.pool, waits_for_lock.clone()).await > 0;
                if n == 2 { waits } else { told() > 0 }
            })
            .await;
            gate.add_permits(1);
            assert_eq!(first.await.unwrap().unwrap(), Outcome::Processed);
            assert_eq!(second.await.unwrap().unwrap(), Outcome::Duplicate, "{option}");
            assert!(told() > 0, "{option}");
            assert_eq!(log.count(&["waiting for the database", &consumer]), 0, "{option}");
        }
    }
    assert_eq!(bank.balance().await, 30);
}

/// A primary that has been demoted begins transactions, and writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_that_only_reads_for_a_while_is_waited_for() {
    let (server, pool) = own_server().await;
    let log = Log::of_process();
    let options: PgConnectOptions = server.url().parse().unwrap();
    let admin = PgPool::connect_lazy_with(options.options([("default_transaction_read_only", "off")]));
    let demote = async |reads_only: &str| {
        let alter = format!("ALTER SYSTEM SET default_transaction_read_only = {reads_only}");
        sqlx::query(sqlx::AssertSqlSafe(alter)).execute(&admin).await.unwrap();
        sqlx::query("SELECT pg_reload_conf()").execute(&admin).await.unwrap();
    };
    for batch in [1, 8] {
        demote("on").await;
        // One, so that no two of them learn of it at different times.
        let one: PgPool =
            sqlx::pool::PoolOptions::new().max_connections(1).connect_lazy(&server.url()).unwrap();
        until("it only reads", || async {
            let said: String =
                sqlx::query_scalar("SHOW default_transaction_read_only").fetch_one(&one).await.unwrap();
            said == "on"
        })
        .await;
        let consumer = format!("bank-of-a-standby-{batch}");
        let layer = InboxLayer::new(one, &*consumer).batch(batch);
        let mut waiting = stack(&layer, handler(books::<Postgres>)).oneshot(message("a"));
        // Some probes.
        let answer = tokio::time::timeout(Duration::from_millis(400), &mut waiting).await;
        assert!(answer.is_err(), "{answer:?}");
        demote("off").await;
        assert_eq!(waiting.await.unwrap(), Outcome::Processed);
        assert_eq!(log.count(&["waiting for the database", &consumer]), 1);
        assert_eq!(log.count(&["answers again", &consumer]), 1);
    }
    assert_eq!(balance(&pool).await, 10);
}

/// A server of the test's own, with accounts.
async fn own_server() -> (Server, PgPool) {
    let server = Server::start().unwrap();
    let pool = pool_at(&server.url());
    migrate::<Postgres>(&mut *pool.acquire().await.unwrap(), &Tables::new()).await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance BIGINT); INSERT INTO accounts VALUES (0, 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    (server, pool)
}

fn pool_at(url: &str) -> PgPool {
    let patience = Duration::from_millis(200);
    sqlx::pool::PoolOptions::new().acquire_timeout(patience).connect_lazy(url).unwrap()
}

async fn balance(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT balance FROM accounts").fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm31_postgres_is_away_for_a_while() {
    let (server, pool) = own_server().await;
    let calls = Arc::new(AtomicU32::new(0));
    let counts = {
        let calls = calls.clone();
        move |tx: Tx<Postgres>| {
            calls.fetch_add(1, Ordering::SeqCst);
            books(tx)
        }
    };
    let log = Log::of_process();
    let mut stack = stack(&InboxLayer::new(pool.clone(), "bank-of-fm31"), handler(counts));
    run(&stack, message("a")).await.unwrap();
    server.kill();
    let mut waiting = stack.clone().oneshot(message("b"));
    let down = async {
        let mut probe = stack.clone();
        until("the stack is not ready", || {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let paused = probe.poll_ready(&mut cx).is_pending();
            async move { paused }
        })
        .await;
    };
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        () = down => {}
    }
    assert_eq!(log.count(&["waiting for the database", "bank-of-fm31"]), 1);
    server.start_again().unwrap();
    stack.ready().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Outcome::Processed);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(balance(&pool).await, 10);
}

/// The commit is done and its answer lost, or lost itself. Where there is another connection that tells, also when there is no
/// attempt left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_commit_without_an_answer_is_done_once() {
    let (server, pool) = own_server().await;
    let mut sum = 0;
    for batch in [1, 8] {
        for (lost, is_refused) in
            [(Direction::ToClient, false), (Direction::ToClient, true), (Direction::ToServer, false)]
        {
            let id = format!("{batch}-{lost:?}-{is_refused}");
            let proxy = Arc::new(Proxy::start(([127, 0, 0, 1], server.port())).await.unwrap());
            let url = format!("postgres://postgres@{}/postgres", proxy.addr());
            let patience = Duration::from_millis(if is_refused { 200 } else { 20_000 });
            let narrow: PgPool =
                sqlx::pool::PoolOptions::new().acquire_timeout(patience).connect_lazy(&url).unwrap();
            let layer = InboxLayer::new(narrow, "bank").batch(batch);
            let hung = Arc::new(Semaphore::new(0));
            let breaks = {
                let (proxy, hung) = (proxy.clone(), hung.clone());
                move |mut tx: Tx<Postgres>| {
                    let (proxy, hung) = (proxy.clone(), hung.clone());
                    async move {
                        book::<Postgres>(&mut tx, 5).await?;
                        proxy.hang(lost);
                        hung.add_permits(1);
                        Ok::<_, Failure>(())
                    }
                }
            };
            let broken = stack(&layer, handler(breaks));
            let cut = async {
                hung.acquire().await.unwrap().forget();
                if lost == Direction::ToClient {
                    // Its answer is on its way; what the proxy holds may still be the one before.
                    until("it is committed", || async { balance(&pool).await == sum + 5 }).await;
                } else {
                    proxy.until(|counts| counts.to_server.held > 0).await;
                }
                if is_refused {
                    proxy.refuse();
                }
                proxy.cut().await;
                proxy.resume(lost);
            };
            let (answer, ()) = tokio::join!(run(&broken, message(&id)), cut);
            let is_known = lost == Direction::ToClient && !is_refused;
            match answer {
                Ok(outcome) => assert!(is_known && outcome == Outcome::Processed, "{id}: {outcome:?}"),
                Err(failure) => {
                    assert!(!is_known && failure.is_transient(), "{id}: {failure:?}");
                    assert!(sql_error(&failure).is_unavailable(), "{id}: {failure:?}");
                }
            }
            let direct = stack(&InboxLayer::new(pool.clone(), "bank"), handler(books::<Postgres>));
            let then = match lost {
                Direction::ToClient => Outcome::Duplicate,
                _ => Outcome::Processed,
            };
            assert_eq!(run(&direct, message(&id)).await.unwrap(), then, "{id}");
            sum += 5;
            assert_eq!(balance(&pool).await, sum, "{id}");
        }
    }
}

/// A statement that the handler's time-out has cut off does not reach into the next transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_statement_cut_off_by_a_time_out_leaves_nothing_behind() {
    use consumer_core::TimeoutLayer;
    let bank = Bank::<Postgres>::open().await;
    let narrow = <Postgres as Under>::pool(&bank.home, 1, Duration::from_secs(30));
    let sleeps = |mut tx: Tx<Postgres>| async move {
        book::<Postgres>(&mut tx, 5).await?;
        sqlx::query("SELECT pg_sleep(0.3)").execute(&mut *tx).await?;
        Ok::<_, Failure>(())
    };
    let layer = bank.layer_on(narrow);
    let slow = tower::ServiceBuilder::new()
        .layer(layer.clone())
        .layer(TimeoutLayer::new(Duration::from_millis(50)))
        .service(handler(sleeps));
    let failure = run(&slow, message("a")).await.unwrap_err();
    assert!(failure.find::<consumer_core::layers::timeout::TimedOut>().is_some(), "{failure:?}");
    let quick = stack(&layer, handler(books::<Postgres>));
    assert_eq!(run(&quick, message("a")).await.unwrap(), Outcome::Processed);
    assert_eq!((bank.balance().await, bank.records().await), (5, 1));
    let mut raw = PgConnection::connect(&xtask::servers::shared_postgres()).await.unwrap();
    raw.ping().await.unwrap();
}
