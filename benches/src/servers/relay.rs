//! The relay: from PostgreSQL and from an SQLite file to Kafka, beside what the database alone can do, and beside what
//! people write by hand.

use std::{
    future::{Future, pending, ready},
    time::{Duration, Instant},
};

use consumer_core::{Message, Outgoing, PublishError, Publisher};
use consumer_kafka::{KafkaAdmin, KafkaPublisher};
use consumer_sql::{Database, Relay, Tables, migrate};
use sqlx::{
    AssertSqlSafe, Pool, Postgres, Row as _, Sqlite,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};

use super::{Fallible, Servers, topic};
use crate::report::{Report, Row};

const EVENTS: u64 = 200_000;
/// What waits while the same number is published.
const WAITING: u64 = 1_000_000;
const ONE_BY_ONE: u64 = 1_000;
const BATCH: u32 = 1_000;

/// Has everything at once: what is left is the database.
#[derive(Clone)]
struct Nowhere;

impl Publisher for Nowhere {
    fn publish(
        &self,
        _: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        ready(Ok(()))
    }
}

pub(super) async fn measure(report: &mut Report, servers: &Servers) -> Fallible<()> {
    let topic = format!("bench-relay-{}", std::process::id());
    KafkaAdmin::new(&servers.kafka)?.ensure_topic(&topic, 4, &[]).await?;
    let kafka = || KafkaPublisher::builder(&servers.kafka).build();
    let tables = Tables::new().with_prefix(format!("bench_{}_", std::process::id()))?;

    let pool = PgPoolOptions::new().max_connections(8).connect(&servers.postgres).await?;
    migrate::<Postgres>(&mut *pool.acquire().await?, &tables).await?;
    let postgres = Bench::<Postgres> { pool: pool.clone(), tables: tables.clone(), topic: topic.clone() };
    let limit = postgres.relayed(Nowhere, EVENTS, 0).await?;
    let relay = postgres.relayed(kafka()?, EVENTS, 0).await?;
    let waiting = postgres.relayed(kafka()?, EVENTS, WAITING).await?;
    postgres.fill(ONE_BY_ONE).await?;
    let by_hand = postgres.one_by_one(kafka()?).await?;
    let row = |what: &str, value| Row::new(format!("relay, {what}"), value, "events/s");
    report.add(row("postgresql, deleted and not published", limit));
    report.add(row("postgresql, SELECT, publish, UPDATE one by one", by_hand));
    report.add(row("postgresql to kafka", relay).at_least(30_000.0));
    report.add(row("postgresql to kafka", relay).against("deleted only", limit).ratio_at_least(0.3));
    report.add(row("postgresql to kafka", relay).against("one by one", by_hand).ratio_at_least(20.0));
    report.add(row("postgresql to kafka, 1,000,000 rows waiting", waiting).against("none waiting", relay));

    let folder = std::env::temp_dir().join(format!("bench-relay-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let options = SqliteConnectOptions::new()
        .filename(folder.join("outbox.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
    migrate::<Sqlite>(&mut *pool.acquire().await?, &tables).await?;
    let sqlite = Bench::<Sqlite> { pool, tables, topic };
    let limit = sqlite.relayed(Nowhere, EVENTS, 0).await?;
    let relay = sqlite.relayed(kafka()?, EVENTS, 0).await?;
    sqlite.fill(ONE_BY_ONE).await?;
    let by_hand = sqlite.one_by_one(kafka()?).await?;
    report.add(row("sqlite, deleted and not published", limit));
    report.add(row("sqlite, SELECT, publish, UPDATE one by one", by_hand));
    report.add(row("sqlite to kafka", relay).against("deleted only", limit));
    report.add(row("sqlite to kafka", relay).against("one by one", by_hand).ratio_at_least(20.0));
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

struct Bench<DB: Database> {
    pool: Pool<DB>,
    tables: Tables,
    topic: String,
}

macro_rules! bench {
    ($database:ty, $numbers:literal, $open:literal, $close:literal, $empty:literal) => {
        impl Bench<$database> {
            fn sql(&self, sql: &str) -> AssertSqlSafe<String> {
                let prefix = self.tables.to_string().replace('*', "");
                AssertSqlSafe(sql.replace("consumer_outbox", &format!("{prefix}outbox")))
            }

            /// Rows of 256 bytes, each with a key of its own.
            async fn fill(&self, rows: u64) -> Fallible<()> {
                let payload = topic::payload(0).replace('\'', "''");
                let sql = self.sql(&format!(
                    concat!(
                        "INSERT INTO consumer_outbox (destination, message_id, message_key, headers, payload) SELECT '{topic}', \
                         'o-' || n, ", $open, "'o-' || n", $close, ", '[[\"content-type\",\"application/json\"]]', ", $open, "'{payload}'",
                        $close, " FROM ", $numbers
                    ),
                    topic = self.topic, payload = payload, rows = rows,
                ));
                sqlx::query(sql).execute(&self.pool).await?;
                Ok(())
            }

            /// How many in a second, of `events` with `more` behind them.
            async fn relayed(&self, publisher: impl Publisher, events: u64, more: u64) -> Fallible<f64> {
                self.fill(events + more).await?;
                let rows = self.sql("SELECT count(*) FROM consumer_outbox");
                let relay = Relay::new(self.pool.clone(), publisher).tables(self.tables.clone()).batch(BATCH);
                let from = Instant::now();
                let report = if more == 0 {
                    relay.until_empty().run(pending()).await?
                } else {
                    // About as long as the others took.
                    relay.run(tokio::time::sleep(Duration::from_secs(5))).await?
                };
                let rate = report.published as f64 / from.elapsed().as_secs_f64();
                let left: i64 = sqlx::query_scalar(rows).fetch_one(&self.pool).await?;
                if left as u64 + report.published != events + more {
                    return Err(format!("{report}, and {left} rows are left").into());
                }
                sqlx::query(self.sql($empty)).execute(&self.pool).await?;
                Ok(rate)
            }

            async fn one_by_one(&self, publisher: impl Publisher) -> Fallible<f64> {
                let next = "SELECT id, message_id, message_key, payload FROM consumer_outbox WHERE state = 0 ORDER BY id LIMIT 1";
                let from = Instant::now();
                let mut done = 0_u32;
                while let Some(row) = sqlx::query(self.sql(next)).fetch_optional(&self.pool).await? {
                    let id: i64 = row.try_get("id")?;
                    let message = Message::builder()
                        .payload(row.try_get::<Vec<u8>, _>("payload")?)
                        .key(row.try_get::<Vec<u8>, _>("message_key")?)
                        .id(row.try_get::<String, _>("message_id")?);
                    publisher.publish(Outgoing::new(&*self.topic, message.build())).await?;
                    let sent = self.sql("UPDATE consumer_outbox SET state = 3 WHERE id = $1");
                    sqlx::query(sent).bind(id).execute(&self.pool).await?;
                    done += 1;
                }
                let rate = f64::from(done) / from.elapsed().as_secs_f64();
                sqlx::query(self.sql($empty)).execute(&self.pool).await?;
                Ok(rate)
            }
        }
    };
}

bench!(Postgres, "generate_series(1, {rows}) n", "convert_to(", ", 'utf8')", "TRUNCATE consumer_outbox");
bench!(
    Sqlite,
    "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) SELECT n FROM c)",
    "CAST(",
    " AS BLOB)",
    "DELETE FROM consumer_outbox"
);
