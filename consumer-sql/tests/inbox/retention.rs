//! Old records go, beside the work.

use consumer_core::{Failure, handler::handler};
use consumer_sql::Tx;
use sqlx::{Connection, Postgres};

use super::bank::{Bank, Under, book, message, run, stack, until};
use crate::on_both;

on_both! {
    what_is_older_than_the_retention_goes_and_nothing_else
}

async fn books<DB: Under>(mut tx: Tx<DB>) -> Result<(), Failure> {
    book::<DB>(&mut tx, 5).await
}

/// More than one portion, and some of another consumer.
async fn with_old_records<DB: Under>() -> Bank<DB> {
    let bank = Bank::<DB>::open().await;
    let mut connection = bank.pool.acquire().await.unwrap();
    let (table, old, blob) = match bank.tables.schema() {
        Some(schema) => (
            format!("{schema}.consumer_inbox"),
            "now() - interval '8 days'",
            "decode(lpad(n::text, 32, '0'), 'hex')",
        ),
        None => ("consumer_inbox".to_owned(), "0", "CAST(n AS BLOB)"),
    };
    for (first, last, consumer) in [(1000, 2200, "bank"), (3000, 3003, "audit")] {
        let insert = format!(
            "WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {last}) \
             INSERT INTO {table} (key_hash, consumer, idempotency_key, recorded_at) \
             SELECT {blob}, '{consumer}', {blob}, {old} FROM numbers"
        );
        DB::execute(&mut connection, insert).await.unwrap();
    }
    drop(connection);
    assert_eq!(bank.records().await, 1203);
    bank
}

async fn what_is_older_than_the_retention_goes_and_nothing_else<DB: Under>() {
    let bank = with_old_records::<DB>().await;
    let stack = stack(&bank.layer(), handler(books::<DB>));
    run(&stack, message("a")).await.unwrap();
    until("only the new one and the other consumer's are left", || async { bank.records().await <= 4 }).await;
    for _ in 0..50 {
        run(&stack, message("a")).await.unwrap();
    }
    assert_eq!(bank.records().await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_a_record_in_other_hands_is_left_for_later() {
    let bank = with_old_records::<Postgres>().await;
    let mut other = bank.pool.acquire().await.unwrap();
    let mut held = other.begin().await.unwrap();
    let lock = format!("SELECT 1 FROM {}.consumer_inbox ORDER BY key_hash LIMIT 1 FOR UPDATE", bank.home);
    <Postgres as Under>::execute(&mut held, lock).await.unwrap();
    let stack = stack(&bank.layer(), handler(books::<Postgres>));
    run(&stack, message("a")).await.unwrap();
    until("the held one is left, the new one and the other consumer's", || async {
        bank.records().await == 5
    })
    .await;
}
