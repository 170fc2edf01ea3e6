//! The server goes and comes back.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use consumer_core::dedup::{ClaimReply, DedupStore, Resolution, Resolved};
use consumer_sql::PostgresStore;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::{sleep, timeout};
use xtask::servers::Postgres;

use crate::{LIFETIME, claimed, own_tables, raw, request, store};

const BOUND: Duration = Duration::from_secs(60);

/// The server dies by SIGKILL while claims are made and completed. What was answered is there afterwards; what was not is
/// recorded by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm31_a_server_that_is_killed_loses_nothing_that_was_answered() {
    let server = Postgres::start().unwrap();
    let store = PostgresStore::connect(server.url()).await.unwrap();
    let (done, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let working = tokio::spawn({
        let (store, done, stop) = (store.clone(), done.clone(), stop.clone());
        async move {
            let mut completed = Vec::new();
            for id in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(ClaimReply::Claimed(claim)) = store.claim(request(id, 1)).await else { continue };
                // Over the outage, however long.
                let resolved = store.resolve(claim, Resolution::Completed, LIFETIME).await.unwrap();
                assert_eq!(resolved, Resolved::Applied, "key {id}");
                completed.push(id);
                done.fetch_add(1, Ordering::Relaxed);
            }
            completed
        }
    });
    let reaches = async |count| {
        while done.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, reaches(20)).await.unwrap();
    let held = claimed(&store, 1_000_000).await;
    server.kill();
    let error = timeout(BOUND, async {
        loop {
            match store.claim(request(1_000_001, 1)).await {
                Err(error) => break error,
                Ok(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let error = error.await.unwrap().to_string();
    assert!(error.contains("the server cannot be reached"), "{error}");
    let up = poll_fn(|cx| Poll::Ready(store.poll_available(cx).is_ready())).await;
    assert!(!up, "the source pauses");
    let recording = store.resolve(held, Resolution::Completed, LIFETIME);
    server.start_again().unwrap();
    timeout(BOUND, poll_fn(|cx| store.poll_available(cx))).await.unwrap();
    assert_eq!(timeout(BOUND, recording).await.unwrap().unwrap(), Resolved::Applied);
    timeout(BOUND, reaches(done.load(Ordering::Relaxed) + 20)).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let completed = timeout(BOUND, working).await.unwrap().unwrap();
    let other = PostgresStore::connect(server.url()).await.unwrap();
    for id in completed.into_iter().chain([1_000_000]) {
        assert_eq!(other.claim(request(id, 2)).await.unwrap(), ClaimReply::Completed, "key {id}");
    }
}

/// Its connection is ended under it, as an administrator or a failover does: nobody notices but the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_connection_that_was_ended_is_made_anew() {
    let server = Postgres::start().unwrap();
    let store = PostgresStore::connect(server.url()).await.unwrap();
    let claim = claimed(&store, 1).await;
    let mut raw = PgConnection::connect(&server.url()).await.unwrap();
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL";
    assert_eq!(sqlx::query(others).fetch_all(&mut raw).await.unwrap().len(), 1);
    let resolved = store.resolve(claim, Resolution::Completed, LIFETIME);
    assert_eq!(timeout(BOUND, resolved).await.unwrap().unwrap(), Resolved::Applied);
}

/// Another session has locked the row, or the server hangs: that is an outage after the timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_server_that_does_not_answer_is_an_outage() {
    let tables = own_tables();
    store(&tables).await;
    let builder = PostgresStore::builder(xtask::servers::shared_postgres()).tables(tables.clone());
    let store = builder.response_timeout(Duration::from_millis(300)).connect().await.unwrap();
    let claim = claimed(&store, 1).await;
    let mut raw = raw().await;
    let mut locked = raw.begin().await.unwrap();
    let sql = format!("SELECT version FROM {}.consumer_dedup FOR UPDATE", tables.schema().unwrap());
    let version: i64 = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *locked).await.unwrap().get(0);
    assert!(version > 0);
    let recording = store.resolve(claim, Resolution::Completed, LIFETIME);
    let error = store.claim(request(1, 2)).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 300ms"), "{error}");
    locked.rollback().await.unwrap();
    assert_eq!(timeout(BOUND, recording).await.unwrap().unwrap(), Resolved::Applied);
    assert_eq!(store.claim(request(1, 2)).await.unwrap(), ClaimReply::Completed);
}
