//! Rows are freed between a relay's look at them and its mark.

use sqlx::{AssertSqlSafe, Pool};

use super::{
    filter::{OutboxFilter, OutboxState},
    outbox::{OutboxAdmin, OutboxChange, OutboxPurge},
};
use crate::{
    Database, Tables, migrate,
    relay::{Limit, Session},
};

const LIMIT: Limit = Limit { rows: 10, bytes: 1 << 20 };
const KEY: &[u8] = b"k";

/// One quarantined, one held behind it, and a third that no relay has seen.
async fn fill<DB: Database>(pool: &Pool<DB>, tables: &Tables) {
    let row = "INSERT INTO consumer_outbox (destination, message_id, message_key, state) VALUES";
    let key = if DB::HAS_SCHEMAS { r"'\x6b'" } else { "x'6b'" };
    let rows = [("1", 2), ("2", 1), ("3", 0)].map(|(id, state)| format!("('t', '{id}', {key}, {state})"));
    let sql = tables.in_sql(&format!("{row} {}", rows.join(", ")));
    DB::run_statement(&mut pool.acquire().await.unwrap(), super::statement::Statement::new(sql))
        .await
        .unwrap();
}

async fn all_wait<DB: Database>(admin: &OutboxAdmin<DB>, ids: &[&str]) {
    let rows = admin.list(&OutboxFilter::default(), 10).await.unwrap();
    let states: Vec<_> = rows.iter().map(|row| (&*row.message_id, row.state)).collect();
    let wanted: Vec<_> = ids.iter().map(|id| (*id, OutboxState::Waiting)).collect();
    assert_eq!(states, wanted);
}

#[cfg(feature = "sqlite")]
mod on_sqlite {
    use sqlx::{Sqlite, sqlite::SqlitePoolOptions};

    use super::*;
    use crate::relay::sqlite::SqliteSession;

    async fn database() -> (tempfile::TempDir, Pool<Sqlite>) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("outbox.db").display());
        let pool = SqlitePoolOptions::new().connect(&url).await.unwrap();
        migrate::<Sqlite>(&mut pool.acquire().await.unwrap(), &Tables::new()).await.unwrap();
        fill(&pool, &Tables::new()).await;
        (folder, pool)
    }

    #[tokio::test]
    async fn what_is_requeued_after_the_look_is_not_held_by_the_mark() {
        let (_folder, pool) = database().await;
        let admin = OutboxAdmin::new(pool.clone());
        let mut relay = SqliteSession::open(&pool, &Tables::new()).await.unwrap();
        assert_eq!(relay.own(0).await.unwrap(), Some(0));
        let (free, behind) = relay.look(LIMIT).await.unwrap();
        assert_eq!((free.len(), behind.len()), (0, 1));
        let change = admin.requeue(&OutboxFilter::default().key(KEY)).await.unwrap();
        assert_eq!((change.rows, change.freed), (1, 1));
        relay.mark(&behind).await.unwrap();
        all_wait(&admin, &["1", "2", "3"]).await;
    }

    #[tokio::test]
    async fn what_is_purged_after_the_look_holds_nothing() {
        let (_folder, pool) = database().await;
        let admin = OutboxAdmin::new(pool.clone());
        let mut relay = SqliteSession::open(&pool, &Tables::new()).await.unwrap();
        let (_, behind) = relay.look(LIMIT).await.unwrap();
        admin.purge(&OutboxFilter::default(), OutboxPurge::Quarantined).await.unwrap();
        relay.mark(&behind).await.unwrap();
        all_wait(&admin, &["2", "3"]).await;
    }
}

#[cfg(feature = "postgres")]
mod on_postgres {
    use std::time::Duration;

    use sqlx::{Postgres, postgres::PgPoolOptions};

    use super::*;
    use crate::relay::postgres::PostgresSession;

    async fn database(name: &str) -> (Pool<Postgres>, Tables) {
        let pool = PgPoolOptions::new().connect(&xtask::servers::shared_postgres()).await.unwrap();
        let tables = Tables::new().in_schema(format!("{name}_{}", std::process::id())).unwrap();
        migrate::<Postgres>(&mut pool.acquire().await.unwrap(), &tables).await.unwrap();
        fill(&pool, &tables).await;
        (pool, tables)
    }

    /// Else the two could wait for each other.
    #[tokio::test]
    #[ignore = "needs servers: cargo xtask test"]
    async fn a_relay_waits_for_no_row_that_an_administrator_works_on() {
        let (pool, tables) = database("due").await;
        let sql = |sql| AssertSqlSafe(tables.in_sql(sql));
        let due = "UPDATE consumer_outbox SET state = 2, due_at = now() WHERE message_id IN ('1', '3')";
        sqlx::query(sql(due)).execute(&pool).await.unwrap();
        let mut administrator = pool.begin().await.unwrap();
        let locked = sql("SELECT id FROM consumer_outbox WHERE message_id = '1' FOR UPDATE");
        sqlx::query(locked).execute(&mut *administrator).await.unwrap();
        let mut relay = PostgresSession::open(&pool, &tables).await.unwrap();
        let mut due = async || tokio::time::timeout(Duration::from_secs(20), relay.retry_due()).await;
        assert_eq!(due().await.expect("it does not wait").unwrap(), 1);
        administrator.rollback().await.unwrap();
        assert_eq!(due().await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    #[ignore = "needs servers: cargo xtask test"]
    async fn what_a_relay_has_looked_at_is_not_freed_before_it_gives_the_shard_up() {
        let (pool, tables) = database("race").await;
        let admin = OutboxAdmin::new(pool.clone()).tables(tables.clone()).wait(Duration::from_millis(100));
        let mut relay = PostgresSession::open(&pool, &tables).await.unwrap();
        let shard = relay.own(0).await.unwrap().unwrap();
        let (free, behind) = relay.look(shard, LIMIT).await.unwrap();
        assert_eq!((free.len(), behind.len()), (0, 1));
        let filter = OutboxFilter::default().key(KEY);
        for attempt in [
            admin.requeue(&filter).await,
            admin.purge(&filter, OutboxPurge::Quarantined).await,
            admin.purge(&filter, OutboxPurge::Unpublished).await,
        ] {
            let error = attempt.unwrap_err();
            assert!(error.is_unavailable() && error.to_string().contains("a relay"), "{error:?}");
        }
        // With time enough it waits, and comes after the mark.
        let admin = admin.wait(Duration::from_secs(60));
        let requeue = tokio::spawn({
            let admin = OutboxAdmin::new(pool.clone()).tables(tables.clone());
            async move { admin.requeue(&OutboxFilter::default().key(KEY)).await }
        });
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = \
                     CAST((('consumer_outbox'::regclass::oid::bigint << 8) | $1::bigint) & 4294967295 AS oid)";
        let waiting = || {
            let waits = AssertSqlSafe(tables.in_sql(waits));
            sqlx::query_scalar::<_, i64>(waits).bind(i64::from(shard)).fetch_one(&pool)
        };
        while waiting().await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        relay.mark(&behind).await.unwrap();
        relay.disown(shard).await.unwrap();
        let change: OutboxChange = requeue.await.unwrap().unwrap();
        assert_eq!((change.rows, change.freed), (1, 2));
        all_wait(&admin, &["1", "2", "3"]).await;
    }
}
