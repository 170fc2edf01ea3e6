#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::time::Duration;

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
    StoreKey,
};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::time::timeout;

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
    for (url, word) in [
        ("sqlite:", "orders.db"),
        ("sqlite::memory:", "memory:"),
        ("sqlite:file::memory:", "orders.db"),
        ("postgres://h/db", "sqlite:"),
    ] {
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
async fn a_file_that_is_gone_is_an_outage_and_no_empty_one_takes_its_place() {
    let file = File::new();
    let store = SqliteStore::open(file.url()).await.unwrap();
    let path = file.0.path().join("dedup.db");
    std::fs::remove_file(&path).unwrap();
    let error = store.claim(request(1, 1)).await.unwrap_err().to_string();
    assert!(error.contains("the file cannot be opened"), "{error}");
    assert!(!path.exists());
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

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_what_is_about_its_key_and_nothing_else() {
    let file = File::new();
    let store = SqliteStore::open(file.url()).await.unwrap();
    let broken = claimed(&store, 1).await;
    let mut raw = file.raw().await;
    // A later version's state; an owner that is none; a text where a number belongs; two bytes where a hash belongs.
    for change in ["state = 77", "state = 1, owner = x'00'", "epoch = 'many'", "fingerprint = x'0102'"] {
        let sql = format!("UPDATE consumer_dedup SET {change} WHERE key_hash = ?");
        let update = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(broken.key.hash().to_be_bytes().to_vec());
        update.execute(&mut raw).await.unwrap();
        let (one, other) = (store.claim(request(1, 2)), store.claim(request(2, 1)));
        let error = one.await.unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{change}: {error}");
        assert!(matches!(other.await.unwrap(), ClaimReply::Claimed(_)), "{change}");
    }
}

#[tokio::test]
async fn more_keys_than_a_statement_takes_parameters() {
    let file = File::new();
    let tables = Tables::new().with_prefix("mine_").unwrap();
    let store = SqliteStore::builder(file.url()).tables(tables).open().await.unwrap();
    let claiming: Vec<_> = (0..3_000).map(|id| store.claim(request(id, 1))).collect();
    let mut renewing = Vec::new();
    for claim in claiming {
        let ClaimReply::Claimed(claim) = claim.await.unwrap() else { panic!("nobody else is there") };
        renewing.push(RenewRequest { claim, attempts: 0, mode: Mode::Normal });
    }
    assert_eq!(store.renew(renewing).await.unwrap(), [Renewal::Held; 3_000]);
    let mut raw = file.raw().await;
    let rows: i64 = sqlx::query("SELECT count(*) FROM mine_dedup").fetch_one(&mut raw).await.unwrap().get(0);
    assert_eq!(rows, 3_000);
}

/// Another process writes batch after batch and lets go for a moment in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_free_for_moments_only_is_not_missed() {
    const CLAIMS: u32 = 10;
    let file = File::new();
    let store = SqliteStore::builder(file.url()).busy_timeout(Duration::from_secs(60)).open().await.unwrap();
    let (mut holder, mut turns) = (file.raw().await, 0);
    for id in 0..CLAIMS {
        let mut claiming = None;
        let claimed = loop {
            let held = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
            let claiming = claiming.get_or_insert_with(|| Box::pin(store.claim(request(id, 1))));
            // Answered at once if it came between the last two batches.
            let answer = timeout(Duration::from_millis(20), &mut *claiming).await;
            held.rollback().await.unwrap();
            turns += 1;
            let moment = Duration::from_millis(2);
            if let Ok(reply) = if answer.is_ok() { answer } else { timeout(moment, claiming).await } {
                break reply.unwrap();
            }
        };
        assert!(matches!(claimed, ClaimReply::Claimed(_)), "{claimed:?}");
    }
    // One or two each; where SQLite does the waiting, some fifty.
    assert!(turns < 5 * CLAIMS, "{turns} batches were written while {CLAIMS} claims waited");
}
