//! Migrations: by several at once, by users without rights, and again.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use consumer_sql::{Tables, migrate};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Sqlite, SqliteConnection};
use xtask::servers::shared_postgres;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_may_migrate_an_sqlite_file_at_once() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("x.db").display());
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let mut connection = SqliteConnection::connect(&url).await.unwrap();
                    migrate::<Sqlite>(&mut connection, &Tables::new()).await
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn who_may_not_create_tables_is_told_keeps_nobody_out_and_may_use_them_later() {
    let name = format!("migrations_{}", std::process::id());
    let mut owner = PgConnection::connect(&shared_postgres()).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE ROLE {name} LOGIN"))).execute(&mut owner).await.unwrap();
    let user = shared_postgres().replace("postgres@", &format!("{name}@"));
    let mut user = PgConnection::connect(&user).await.unwrap();
    let tables = Tables::new().in_schema(&*name).unwrap();
    let error = migrate::<Postgres>(&mut user, &tables).await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("consumer-admin migrate"), "{error}");
    // The connection that was refused is still there, and keeps no lock.
    let owned = migrate::<Postgres>(&mut owner, &tables);
    tokio::time::timeout(std::time::Duration::from_secs(30), owned)
        .await
        .expect("nobody is kept out")
        .unwrap();
    for grant in ["USAGE ON SCHEMA", "SELECT ON ALL TABLES IN SCHEMA"] {
        let grant = format!("GRANT {grant} {name} TO {name}");
        sqlx::query(AssertSqlSafe(grant)).execute(&mut owner).await.unwrap();
    }
    migrate::<Postgres>(&mut user, &tables).await.unwrap();
}
