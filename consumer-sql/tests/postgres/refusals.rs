//! Servers, users and tables with which it cannot work.

use consumer_core::dedup::DedupStore;
use consumer_sql::{PostgresStore, SqlError};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::error::Error;
use xtask::servers::{Postgres, ServerCertificate, free_port, shared_postgres};

use crate::{claimed, own_tables, raw, request, store};

/// All that a log would have of it.
fn text(error: &SqlError) -> String {
    let mut text = format!("{error}\n{error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n{cause}"));
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_wrong_password_a_missing_database_and_no_server_are_told_apart() {
    let server = Postgres::builder().password("s3cret").start().unwrap();
    PostgresStore::connect(server.url()).await.unwrap();
    let wrong = PostgresStore::connect(server.url().replace("s3cret", "gu3ss")).await.unwrap_err();
    assert!(wrong.is_denied() && wrong.to_string().contains("refuses the user or the password"), "{wrong:?}");
    let nowhere = format!("{}/nowhere", server.url().trim_end_matches("/postgres"));
    let missing = PostgresStore::connect(nowhere).await.unwrap_err();
    assert!(missing.is_schema() && missing.to_string().contains("no such database"), "{missing:?}");
    let port = free_port().unwrap();
    let away = PostgresStore::connect(format!("postgres://ann:s3cret@127.0.0.1:{port}/x")).await.unwrap_err();
    assert!(away.is_unavailable() && away.to_string().contains("cannot be reached"), "{away:?}");
    for error in [wrong, missing, away] {
        let text = text(&error);
        assert!(text.contains("127.0.0.1:") && !text.contains("s3cret") && !text.contains("gu3ss"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_user_without_rights_is_refused_and_one_with_those_on_the_tables_works() {
    let tables = own_tables();
    let schema = tables.schema().unwrap();
    let url = shared_postgres().replace("postgres@", &format!("{schema}@"));
    let mut raw = raw().await;
    sqlx::query(AssertSqlSafe(format!("CREATE ROLE {schema} LOGIN"))).execute(&mut raw).await.unwrap();
    let builder = || PostgresStore::builder(&url).tables(tables.clone());

    let denied = builder().connect().await.unwrap_err();
    assert!(denied.is_denied() && denied.to_string().contains("may not create tables"), "{denied:?}");
    // Its tables are somebody else's to make.
    let missing = builder().migrate(false).connect().await.unwrap_err();
    assert!(missing.is_schema() && missing.to_string().contains("migrate"), "{missing:?}");
    store(&tables).await;
    let denied = builder().migrate(false).connect().await.unwrap_err();
    assert!(denied.is_denied(), "{denied:?}");
    let rights = format!(
        "GRANT USAGE ON SCHEMA {schema} TO {schema}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {schema}"
    );
    sqlx::raw_sql(AssertSqlSafe(rights)).execute(&mut raw).await.unwrap();
    let store = builder().migrate(false).connect().await.unwrap();
    claimed(&store, 1).await;
    let drop_role = format!("DROP SCHEMA {schema} CASCADE; DROP ROLE {schema}");
    sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&mut raw).await.unwrap();
    let error = store.claim(request(2, 1)).await.unwrap_err().to_string();
    assert!(error.contains("run `consumer-admin migrate`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn tables_of_a_later_version_are_refused() {
    let tables = own_tables();
    store(&tables).await;
    let later = format!(
        "INSERT INTO {}.consumer_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', TRUE, '\\x00', 0)",
        tables.schema().unwrap()
    );
    sqlx::query(AssertSqlSafe(later)).execute(&mut raw().await).await.unwrap();
    let error = PostgresStore::builder(shared_postgres()).tables(tables).connect().await.unwrap_err();
    assert!(error.is_schema() && error.to_string().contains("later version"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_server_with_tls_is_checked_by_its_authority() {
    let server = Postgres::builder().tls().start().unwrap();
    let connected = PostgresStore::connect(server.url()).await;
    if cfg!(feature = "tls") {
        claimed(&connected.unwrap(), 1).await;
        let stranger = server.url().split("&sslrootcert").next().unwrap().to_owned();
        let error = PostgresStore::connect(stranger).await.unwrap_err();
        assert!(text(&error).contains("certificate"), "{error:?}");
    } else {
        assert!(text(&connected.unwrap_err()).contains("TLS"));
    }
    PgConnection::connect(&server.url().replace("verify-full", "disable"))
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_certificate_that_cannot_be_trusted_is_refused_and_it_is_said_why() {
    for (kind, trusts_other, why) in [
        (ServerCertificate::Expired, false, "has expired"),
        (ServerCertificate::OtherHost, false, "is not for this name"),
        (ServerCertificate::Valid, true, "is from an authority that is not trusted"),
    ] {
        let server = Postgres::builder().password("hunter2").tls().server_certificate(kind).start().unwrap();
        let files = server.certificates().unwrap();
        let [ours, other] =
            [files.authority(), files.other_authority()].map(|path| path.display().to_string());
        let url = if trusts_other { server.url().replace(&ours, &other) } else { server.url() };
        let error = PostgresStore::connect(url).await.unwrap_err();
        assert!(error.to_string().contains(why), "{kind:?}: {}", text(&error));
        assert!(!text(&error).contains("hunter2"), "{}", text(&error));
    }
}
