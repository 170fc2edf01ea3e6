#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::time::Duration;

use consumer_core::dedup::{ClaimReply, ClaimRequest, DedupStore, Owner, Resolution, Resolved, StoreKey};
use sqlx::{Connection, Row, SqliteConnection};

use super::*;

fn request(id: u32, process: u128) -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("c".into(), id.to_string().into()),
        owner: Owner { process, seq: 1 },
        fingerprint: Some(7),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(60),
        attempt: 1,
        redrive: 0,
    }
}

struct File(tempfile::TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.0.path().join("dedup.db").display())
    }

    async fn raw(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url()).await.unwrap()
    }
}

async fn claimed(store: &SqliteStore, id: u32) -> Claim {
    match store.claim(request(id, 1)).await.unwrap() {
        ClaimReply::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_url_that_names_no_file_is_refused_without_touching_one() {
    for (url, word) in
        [("sqlite:", "orders.db"), ("sqlite::memory:", "memory:"), ("postgres://h/db", "sqlite:")]
    {
        let error = SqliteStore::builder(url).check().unwrap_err();
        assert!(error.is_config() && error.to_string().contains(word), "{error}");
    }
    SqliteStore::builder("sqlite:orders.db").check().unwrap();
    SqliteStore::builder("sqlite:///var/lib/orders.db").check().unwrap();
}

#[tokio::test]
async fn what_was_completed_is_known_after_a_restart_and_to_other_processes() {
    let file = File::new();
    let store = SqliteStore::open(file.url()).await.unwrap();
    let claim = claimed(&store, 1).await;
    let other = SqliteStore::open(file.url()).await.unwrap();
    assert!(matches!(other.claim(request(1, 2)).await.unwrap(), ClaimReply::Busy { .. }));
    let lifetime = Duration::from_secs(600);
    assert_eq!(store.resolve(claim, Resolution::Completed, lifetime).await.unwrap(), Resolved::Applied);
    assert_eq!(other.claim(request(1, 2)).await.unwrap(), ClaimReply::Completed);
    drop((store, other));
    let again = SqliteStore::open(file.url()).await.unwrap();
    assert_eq!(again.claim(request(1, 3)).await.unwrap(), ClaimReply::Completed);
}

#[tokio::test]
async fn fm31_while_the_file_is_held_claims_fail_and_what_has_happened_is_recorded_later() {
    let file = File::new();
    let store =
        SqliteStore::builder(file.url()).busy_timeout(Duration::from_millis(50)).open().await.unwrap();
    let claim = claimed(&store, 1).await;
    let mut holder = file.raw().await;
    let held = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(store.claim(request(2, 1)).await.is_err());
    let up = || std::future::poll_fn(|cx| std::task::Poll::Ready(store.poll_available(cx).is_ready()));
    assert!(!up().await, "the source pauses");
    let recording = store.resolve(claim, Resolution::Completed, Duration::from_secs(600));
    held.rollback().await.unwrap();
    assert_eq!(recording.await.unwrap(), Resolved::Applied);
    std::future::poll_fn(|cx| store.poll_available(cx)).await;
    assert_eq!(store.claim(request(1, 2)).await.unwrap(), ClaimReply::Completed);
    claimed(&store, 2).await;
}

#[tokio::test]
async fn expired_rows_go_in_time() {
    let file = File::new();
    let store = SqliteStore::open(file.url()).await.unwrap();
    for id in 0..50 {
        let claim = claimed(&store, id).await;
        store.resolve(claim, Resolution::Completed, Duration::from_millis(1)).await.unwrap();
    }
    let mut raw = file.raw().await;
    let began = std::time::Instant::now();
    loop {
        claimed(&store, 1_000).await;
        let rows: i64 =
            sqlx::query("SELECT count(*) FROM consumer_dedup").fetch_one(&mut raw).await.unwrap().get(0);
        if rows == 1 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{rows} rows are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_or_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.txt");
    std::fs::write(&path, "this is a text, and a long one, longer than any header of a database would be")
        .unwrap();
    let error = SqliteStore::open(format!("sqlite:{}", path.display())).await.unwrap_err();
    assert!(!error.is_config() && error.to_string().contains("orders.txt"), "{error}");

    let file = File::new();
    drop(SqliteStore::open(file.url()).await.unwrap());
    let mut raw = file.raw().await;
    let later = "INSERT INTO consumer_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', 1, x'00', 0)";
    sqlx::query(later).execute(&mut raw).await.unwrap();
    let error = SqliteStore::open(file.url()).await.unwrap_err();
    assert!(error.to_string().contains("later version"), "{error}");

    let missing = SqliteStore::open("sqlite:/no/such/folder/orders.db").await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/folder"), "{missing}");
}
