//! The start of a relay, and what wakes it.

use std::time::Duration;

use consumer_sql::{Relay, Tables};
use tokio::sync::oneshot;

use crate::{
    LIMIT, broker,
    database::{TestDatabase, postgres, sqlite},
    message, on_both, published, relay, write,
};

on_both!(missing_tables_are_told_at_the_start_with_what_to_run);

async fn missing_tables_are_told_at_the_start_with_what_to_run<D: TestDatabase>(database: D) {
    let broker = broker();
    let tables = Tables::new().with_prefix("elsewhere_").unwrap();
    let relay = Relay::new(database.pool().clone(), broker.publisher()).tables(tables);
    let error = relay.run(std::future::pending()).await.unwrap_err();
    assert!(error.is_schema() && error.to_string().contains("consumer-admin migrate"), "{error}");
    assert!(error.to_string().contains("elsewhere_"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_new_row_wakes_the_relay() {
    let (database, broker) = (postgres().await, broker());
    let (stop, stopped) = oneshot::channel::<()>();
    let run = relay(&database, &broker).poll(Duration::from_secs(3600)).run(async { drop(stopped.await) });
    let run = tokio::spawn(run);
    // The first may be found by the first look, the others not.
    for n in 1..=5 {
        write(&database, [message(n.to_string(), "a")]).await;
        let seen = async {
            while published(&broker, "t").len() < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, seen).await.expect("it is published without a poll");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(stop);
    run.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relay_at_a_time_has_an_sqlite_file() {
    let (database, broker) = (sqlite().await, broker());
    write(&database, [message("1", "a")]).await;
    let lock = database.folder.path().join("outbox.db.shop_outbox_lock");
    let held = std::fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(relay(&database, &broker).run(async { drop(stopped.await) }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(published(&broker, "t").is_empty());
    drop(held);
    let seen = async {
        while published(&broker, "t").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, seen).await.expect("it takes over");
    drop(stop);
    run.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sqlite_file_is_one_file_by_whatever_path() {
    let (database, broker) = (sqlite().await, broker());
    write(&database, [message("1", "a")]).await;
    let held = std::fs::File::create(database.folder.path().join("outbox.db.shop_outbox_lock")).unwrap();
    held.lock().unwrap();
    let link = database.folder.path().join("link.db");
    std::os::unix::fs::symlink(database.folder.path().join("outbox.db"), &link).unwrap();
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", link.display())).await.unwrap();
    let relay = Relay::new(pool, broker.publisher()).tables(database.tables().clone());
    let run = relay.poll(Duration::from_millis(10)).run(tokio::time::sleep(Duration::from_millis(300)));
    assert_eq!(run.await.unwrap().published, 0);
}

/// Else it would publish the same rows at each start, and delete none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_user_who_may_not_delete_is_told_at_the_start() {
    let (database, broker) = (postgres().await, broker());
    let (schema, role) = (database.tables().schema().unwrap(), format!("reader_{}", std::process::id()));
    database.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    database.execute(&format!("GRANT USAGE ON SCHEMA {schema} TO {role}")).await;
    database.execute(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")).await;
    write(&database, [message("1", "a")]).await;
    let options = (*database.pool().connect_options()).clone().username(&role);
    let pool = sqlx::PgPool::connect_with(options).await.unwrap();
    let relay = Relay::new(pool, broker.publisher()).tables(database.tables().clone());
    let run = tokio::time::timeout(LIMIT, relay.run(std::future::pending()));
    let error = run.await.expect("it does not begin").unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("DELETE"), "{error}");
    assert!(published(&broker, "t").is_empty());
}
