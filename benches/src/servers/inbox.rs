//! The inbox: beside the same transaction without it, in batches, and with few and many records there already.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use consumer_core::{Failure, Message, Outcome, handler::handler};
use consumer_sql::{InboxLayer, Tables, Tx, migrate};
use sqlx::{
    Pool, Postgres, QueryBuilder, Sqlite,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tower::{Layer, Service, ServiceExt};

use super::{Fallible, Servers};
use crate::report::{Report, Row};

const ACCOUNTS: u64 = 1_000;
/// Transactions at once, one by one.
const AT_ONCE: u64 = 16;
/// Messages at once where they share a transaction.
const IN_BATCHES: u64 = 256;
const BATCH: usize = 64;
const LASTS: Duration = Duration::from_secs(5);
/// Batches at work at once: the layer's default.
const BATCHES: u64 = 2;
const ROUNDS: usize = 3;
const RECORD: &str = "INSERT INTO bench_inbox (key_hash, consumer, idempotency_key) ";
/// So that numbers that follow each other lie far apart, as hashes do.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
const UPDATE: &str = "UPDATE bench_accounts SET balance = balance + 1 WHERE id = $1";

pub(super) async fn measure(report: &mut Report, servers: &Servers) -> Fallible<()> {
    let pool = PgPoolOptions::new().max_connections(20).connect(&servers.postgres).await?;
    migrate::<Postgres>(&mut *pool.acquire().await?, &tables()?).await?;
    accounts_postgres(&pool).await?;
    let (mut bare, mut inbox, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let (mut limit, mut by_hand, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, since the machine is not the same from one minute to the next.
    for _ in 0..ROUNDS {
        bare.push(bare_postgres(&pool).await?);
        inbox.push(inbox_postgres(&pool, AT_ONCE, |layer| layer).await?);
        single.push(inbox_postgres(&pool, 1, |layer| layer).await?);
        limit.push(batch_postgres(&pool, BATCHES, false).await?);
        by_hand.push(batch_postgres(&pool, BATCHES, true).await?);
        batch.push(inbox_postgres(&pool, IN_BATCHES, |layer| layer.batch(BATCH)).await?);
    }
    let figures = [bare, inbox, single, limit, by_hand, batch].map(middle);
    rows(report, "postgresql", figures);

    let folder = std::env::temp_dir().join(format!("bench-inbox-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let options = SqliteConnectOptions::new()
        .filename(folder.join("bank.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
    migrate::<Sqlite>(&mut *pool.acquire().await?, &tables()?).await?;
    accounts_sqlite(&pool).await?;
    let (mut bare, mut inbox, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let (mut limit, mut by_hand, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(bare_sqlite(&pool).await?);
        inbox.push(inbox_sqlite(&pool, AT_ONCE, |layer| layer).await?);
        single.push(inbox_sqlite(&pool, 1, |layer| layer).await?);
        limit.push(batch_sqlite(&pool, 1, false).await?);
        by_hand.push(batch_sqlite(&pool, 1, true).await?);
        batch.push(inbox_sqlite(&pool, IN_BATCHES, |layer| layer.batch(BATCH)).await?);
    }
    let figures = [bare, inbox, single, limit, by_hand, batch].map(middle);
    rows(report, "sqlite", figures);
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// 10,000 records, and 10,000,000.
pub(super) async fn remembered(report: &mut Report, servers: &Servers) -> Fallible<()> {
    let pool = PgPoolOptions::new().max_connections(20).connect(&servers.postgres).await?;
    migrate::<Postgres>(&mut *pool.acquire().await?, &tables()?).await?;
    accounts_postgres(&pool).await?;
    sqlx::query("TRUNCATE bench_inbox").execute(&pool).await?;
    let fill = |from: u64, to: u64| {
        let sql = "INSERT INTO bench_inbox (key_hash, consumer, idempotency_key, fingerprint) \
                   SELECT decode(md5(n::text), 'hex'), 'other', n::text::bytea, decode(md5(n::text), 'hex') \
                   FROM generate_series($1, $2) n";
        sqlx::query(sql).bind(from.cast_signed()).bind(to.cast_signed()).execute(&pool)
    };
    let measured = async || {
        sqlx::query("VACUUM ANALYZE bench_inbox").execute(&pool).await?;
        sqlx::query("CHECKPOINT").execute(&pool).await?;
        inbox_postgres(&pool, AT_ONCE, |layer| layer).await
    };
    fill(1, 10_000).await?;
    let few = middle(vec![measured().await?, measured().await?, measured().await?]);
    fill(10_001, 10_000_000).await?;
    let many = middle(vec![measured().await?, measured().await?, measured().await?]);
    let row = |what: &str, value| Row::new(format!("inbox on postgresql, {what}"), value, "messages/s");
    report.add(row("10,000 records there", few));
    report.add(row("10,000,000 records there", many).against("10,000", few).ratio_at_least(0.8));
    Ok(())
}

fn rows(report: &mut Report, database: &str, [bare, inbox, single, limit, by_hand, batch]: [f64; 6]) {
    let row = |what: &str, value| Row::new(format!("inbox, {database}: {what}"), value, "messages/s");
    report.add(row("the bare transaction, 16 at once", bare));
    report.add(row("one by one, 16 at once", inbox).against("bare", bare).ratio_at_least(0.7));
    report.add(row("one by one, one at a time", single));
    let bare = "bare transactions of 64 such statements, as many at once";
    report.add(row(bare, limit).against("one by one, 16 at once", inbox));
    let statements = "the same with records and savepoints, by hand";
    report.add(row(statements, by_hand).against("one by one, 16 at once", inbox));
    report.add(row("in batches of 64", batch).against("bare", limit));
    report.add(row("in batches of 64", batch).against("by hand", by_hand));
    report.add(row("in batches of 64", batch).against("one by one, 16 at once", inbox).ratio_at_least(5.0));
    report
        .add(row("in batches of 64", batch).against("one by one, one at a time", single).ratio_at_least(5.0));
}

fn tables() -> Fallible<Tables> {
    Ok(Tables::new().with_prefix("bench_")?)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Never the same twice, whichever measurement asks.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Calls at once for a while; how many in a second.
async fn at_once<F, Fut>(tasks: u64, call: F) -> Fallible<f64>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Fallible<()>> + Send,
{
    let call = Arc::new(call);
    let from = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                let mut done = 0_u64;
                while from.elapsed() < LASTS {
                    call().await?;
                    done += 1;
                }
                Fallible::Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await??;
    }
    Ok(done as f64 / from.elapsed().as_secs_f64())
}

macro_rules! bench {
    ($database:ty, $accounts:ident, $bare:ident, $batch:ident, $inbox:ident, $begin:literal) => {
        async fn $accounts(pool: &Pool<$database>) -> Fallible<()> {
            sqlx::query("DROP TABLE IF EXISTS bench_accounts").execute(pool).await?;
            sqlx::query("CREATE TABLE bench_accounts (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL)")
                .execute(pool)
                .await?;
            for id in 0..ACCOUNTS {
                let insert = sqlx::query("INSERT INTO bench_accounts VALUES ($1, 0)");
                insert.bind(id.cast_signed()).execute(pool).await?;
            }
            Ok(())
        }

        async fn $bare(pool: &Pool<$database>) -> Fallible<f64> {
            let pool = pool.clone();
            // SQLite lets one write at a time; who waits here waits fairly, as in the inbox.
            let turn = Arc::new(tokio::sync::Semaphore::new(if $begin == "BEGIN" { 1_000 } else { 1 }));
            at_once(AT_ONCE, move || {
                let (pool, turn) = (pool.clone(), turn.clone());
                async move {
                    let _turn = turn.acquire().await?;
                    let mut transaction = pool.begin_with($begin).await?;
                    let account = (next() % ACCOUNTS).cast_signed();
                    sqlx::query(UPDATE).bind(account).execute(&mut *transaction).await?;
                    transaction.commit().await?;
                    Ok(())
                }
            })
            .await
        }

        /// What the database and its driver can do at most, where a message costs one statement of its own; or with all that
        /// the inbox says, without the inbox.
        async fn $batch(pool: &Pool<$database>, tasks: u64, with_records: bool) -> Fallible<f64> {
            let pool = pool.clone();
            let batches = at_once(tasks, move || {
                let pool = pool.clone();
                async move {
                    let mut transaction = pool.begin_with($begin).await?;
                    if with_records {
                        let mut insert = QueryBuilder::<$database>::new(RECORD);
                        insert.push_values(0..BATCH, |mut values, _| {
                            let hash = u128::from(next()).wrapping_mul(SPREAD).to_be_bytes();
                            values.push_bind(hash.to_vec()).push_bind("by hand").push_bind(hash.to_vec());
                        });
                        insert.build().execute(&mut *transaction).await?;
                        sqlx::raw_sql("SAVEPOINT message").execute(&mut *transaction).await?;
                    }
                    for _ in 0..BATCH {
                        let account = (next() % ACCOUNTS).cast_signed();
                        sqlx::query(UPDATE).bind(account).execute(&mut *transaction).await?;
                        if with_records {
                            let next = "RELEASE SAVEPOINT message; SAVEPOINT message";
                            sqlx::raw_sql(next).execute(&mut *transaction).await?;
                        }
                    }
                    transaction.commit().await?;
                    Ok(())
                }
            });
            Ok(batches.await? * BATCH as f64)
        }

        async fn $inbox(
            pool: &Pool<$database>,
            tasks: u64,
            options: impl Fn(InboxLayer<$database>) -> InboxLayer<$database>,
        ) -> Fallible<f64> {
            let book = |message: Message, mut tx: Tx<$database>| async move {
                let number: u64 = std::str::from_utf8(message.payload())?.parse()?;
                let account = (number % ACCOUNTS).cast_signed();
                sqlx::query(UPDATE).bind(account).execute(&mut *tx).await?;
                Ok::<_, Failure>(())
            };
            let layer = options(InboxLayer::new(pool.clone(), "bench").tables(tables()?));
            let stack = layer.layer(handler(book));
            at_once(tasks, move || {
                let mut stack = stack.clone();
                async move {
                    let number = next().to_string();
                    let id = format!("{}-{number}", std::process::id());
                    let message = Message::builder().payload(number).id(id).build();
                    match stack.ready().await?.call(message).await? {
                        Outcome::Processed => Ok(()),
                        other => Err(format!("a new message was {other:?}").into()),
                    }
                }
            })
            .await
        }
    };
}

bench!(Postgres, accounts_postgres, bare_postgres, batch_postgres, inbox_postgres, "BEGIN");
bench!(Sqlite, accounts_sqlite, bare_sqlite, batch_sqlite, inbox_sqlite, "BEGIN IMMEDIATE");
