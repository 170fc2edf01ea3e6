//! Handlers that do with their transaction what they should not.

use std::sync::{Arc, Mutex};

use consumer_core::{Failure, Message, Outcome, handler::handler};
use consumer_sql::Tx;
use tower::{ServiceExt, service_fn};

use super::bank::{Bank, Under, book, message, run, stack, until};
use crate::on_both;

on_both! {
    a_transaction_that_a_spawned_task_keeps_is_not_committed
    a_transaction_is_taken_once_at_a_time
    a_handler_that_never_takes_it_is_counted
    a_message_that_is_kept_has_no_transaction_any_more
    a_savepoint_of_the_handlers_own_works
}

async fn a_transaction_that_a_spawned_task_keeps_is_not_committed<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let kept = Arc::new(Mutex::new(None));
    let keeps = {
        let kept = kept.clone();
        move |mut tx: Tx<DB>| {
            let kept = kept.clone();
            async move {
                book::<DB>(&mut tx, 5).await?;
                *kept.lock().unwrap() = Some(tx);
                Ok::<_, Failure>(())
            }
        }
    };
    let stack = stack(&bank.layer(), handler(keeps));
    let failure = run(&stack, message("a")).await.unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("still has the transaction"), "{failure}");
    drop(kept.lock().unwrap().take());
    // The connection goes away, or is clean; either way the next one can write.
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
    until("its connection is free again", || async {
        let mut tx = bank.pool.begin().await.unwrap();
        DB::execute(&mut tx, "UPDATE accounts SET balance = balance + 0 WHERE id = 0".into()).await.is_ok()
    })
    .await;
}

async fn a_transaction_is_taken_once_at_a_time<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let two = |_: Tx<DB>, second: Result<Tx<DB>, Failure>| async move {
        let failure = second.unwrap_err();
        assert!(failure.is_permanent() && failure.chain().contains("taken already"), "{failure}");
    };
    run(&stack(&bank.layer(), handler(two)), message("a")).await.unwrap();
    let one_after_another = |message: Message| async move {
        for _ in 0..2 {
            book::<DB>(&mut *Tx::<DB>::take(&message)?, 5).await?;
        }
        Ok::<_, Failure>(())
    };
    run(&stack(&bank.layer(), service_fn(one_after_another)), message("b")).await.unwrap();
    assert_eq!(bank.balance().await, 10);
    let failure = handler(|_: Tx<DB>| async {}).oneshot(message("c")).await.unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("no inbox layer for"), "{failure}");
}

async fn a_handler_that_never_takes_it_is_counted<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let idle = handler(|| async {});
    for (layer, warnings) in [(bank.layer(), 1), (bank.layer().without_transaction_is_fine(), 0)] {
        let log = super::bank::Log::default();
        let _log = log.listen();
        let stack = stack(&layer, idle.clone());
        for id in ["a", "b"] {
            let id = format!("{id}{warnings}");
            assert_eq!(run(&stack, message(&id)).await.unwrap(), Outcome::Processed);
        }
        assert_eq!(log.count("succeeded without its transaction"), warnings);
    }
}

async fn a_message_that_is_kept_has_no_transaction_any_more<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let kept = Arc::new(Mutex::new(None));
    let keeps = {
        let kept = kept.clone();
        move |message: Message, tx: Tx<DB>| {
            let kept = kept.clone();
            async move {
                *kept.lock().unwrap() = Some(message);
                drop(tx);
            }
        }
    };
    run(&stack(&bank.layer(), handler(keeps)), message("a")).await.unwrap();
    let message = kept.lock().unwrap().take().unwrap();
    let failure = Tx::<DB>::take(&message).unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("is over"), "{failure}");
}

async fn a_savepoint_of_the_handlers_own_works<DB: Under>() {
    use sqlx::Connection;
    let bank = Bank::<DB>::open().await;
    let tries = |mut tx: Tx<DB>| async move {
        book::<DB>(&mut tx, 5).await?;
        let mut part = tx.begin().await?;
        DB::execute(&mut part, "UPDATE accounts SET balance = 1000".into()).await?;
        assert!(DB::execute(&mut part, "UPDATE no_such_table SET x = 1".into()).await.is_err());
        // Rolled back to the savepoint when dropped.
        drop(part);
        book::<DB>(&mut tx, 5).await
    };
    run(&stack(&bank.layer(), handler(tries)), message("a")).await.unwrap();
    assert_eq!((bank.balance().await, bank.records().await), (10, 1));
}
