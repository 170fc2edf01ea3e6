//! Handlers that do with their transaction what they should not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use consumer_core::{Failure, Message, Outcome, RetryLayer, handler::handler};
use consumer_sql::{InboxLayer, Tx};
use tower::{ServiceExt, service_fn};

use super::bank::{Bank, Under, book, message, run, stack, until};
use crate::on_both;

on_both! {
    a_transaction_that_a_spawned_task_keeps_is_not_committed
    a_transaction_is_taken_once_at_a_time
    a_handler_that_never_takes_it_is_counted
    a_message_that_is_kept_has_no_transaction_any_more
    a_savepoint_of_the_handlers_own_works
    a_savepoint_that_is_forgotten_is_committed
    a_savepoint_that_is_forgotten_goes_with_its_message
    what_a_layer_inside_has_set_aside_is_not_recorded
    a_retry_inside_does_not_book_twice
    two_layers_that_would_wait_for_each_other_are_refused
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
    let log = super::bank::Log::of_process();
    let batch = super::bank::BATCH.try_with(|max| *max).unwrap_or(1);
    for (is_fine, warnings) in [(false, 1), (true, 0)] {
        let consumer = format!("idle-{}-{batch}-{is_fine}", DB::NAME);
        let layer = InboxLayer::new(bank.pool.clone(), &*consumer).tables(bank.tables.clone()).batch(batch);
        let stack = stack(&if is_fine { layer.without_transaction_is_fine() } else { layer }, idle.clone());
        for id in ["a", "b"] {
            assert_eq!(run(&stack, message(id)).await.unwrap(), Outcome::Processed);
        }
        assert_eq!(log.count(&["succeeded without its transaction", &consumer]), warnings);
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

async fn a_savepoint_that_is_forgotten_is_committed<DB: Under>() {
    use sqlx::Connection;
    let bank = Bank::<DB>::open().await;
    let narrow = DB::pool(&bank.home, 1, Duration::from_secs(30));
    let forgets = |mut tx: Tx<DB>| async move {
        let mut part = tx.begin().await?;
        book::<DB>(&mut part, 5).await?;
        std::mem::forget(part);
        Ok::<_, Failure>(())
    };
    let stack = stack(&bank.layer_on(narrow), handler(forgets));
    for n in 1..=3 {
        assert_eq!(run(&stack, message(&n.to_string())).await.unwrap(), Outcome::Processed);
        assert_eq!((bank.balance().await, bank.records().await), (5 * n, n));
    }
}

async fn a_savepoint_that_is_forgotten_goes_with_its_message<DB: Under>() {
    use sqlx::Connection;
    let bank = Bank::<DB>::open().await;
    let narrow = DB::pool(&bank.home, 1, Duration::from_secs(30));
    let forgotten = Arc::new(tokio::sync::Semaphore::new(0));
    let told = forgotten.clone();
    let forgets = service_fn(move |message: Message| {
        let told = told.clone();
        async move {
            let mut tx = Tx::<DB>::take(&message)?;
            book::<DB>(&mut tx, 5).await?;
            if message.attempt() == 1 {
                std::mem::forget(tx.begin().await?);
                told.add_permits(1);
                std::future::pending::<()>().await;
            }
            Ok::<_, Failure>(())
        }
    });
    let stack = stack(&bank.layer_on(narrow), forgets);
    let hangs = tokio::spawn({
        let stack = stack.clone();
        async move { run(&stack, message("a")).await }
    });
    forgotten.acquire().await.unwrap().forget();
    hangs.abort();
    assert!(hangs.await.unwrap_err().is_cancelled());
    let mut other = bank.pool.acquire().await.unwrap();
    book::<DB>(&mut other, 0).await.unwrap();
    drop(other);
    for n in 1..=3 {
        let next = message(&n.to_string()).with_attempt(2);
        assert_eq!(run(&stack, next).await.unwrap(), Outcome::Processed);
        assert_eq!((bank.balance().await, bank.records().await), (5 * n, n));
    }
}

/// sqlx takes the transaction back with a savepoint that it could not begin; what follows must not happen by itself.
async fn nothing_happens_after_a_savepoint_that_ended_the_transaction(batch: usize) {
    use sqlx::{Connection, Postgres};
    let bank = Bank::<Postgres>::open().await;
    let layer = bank.layer().batch(batch);
    let goes_on = |message: Message, mut tx: Tx<Postgres>| async move {
        match &message.id().unwrap()[..] {
            b"refused" => {
                assert!(Postgres::execute(&mut tx, "SELECT 1 / 0".into()).await.is_err());
                assert!(tx.begin().await.is_err());
            }
            b"dropped" => {
                Postgres::begin_and_drop(&mut tx).await;
            }
            _ => {}
        }
        book::<Postgres>(&mut tx, 5).await
    };
    let stack = tower::ServiceBuilder::new()
        .layer(layer)
        .layer(consumer_core::CatchPanicLayer::new())
        .service(handler(goes_on));
    for id in ["refused", "dropped", "refused", "dropped"] {
        let failure = run(&stack, message(id)).await.unwrap_err();
        assert!(failure.chain().contains("transaction is over"), "{failure:?}");
        assert_eq!((bank.balance().await, bank.records().await), (0, 0), "{id}");
    }
    assert_eq!(run(&stack, message("a")).await.unwrap(), Outcome::Processed);
    assert_eq!((bank.balance().await, bank.records().await), (5, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn postgres_nothing_happens_after_a_savepoint_that_ended_the_transaction() {
    nothing_happens_after_a_savepoint_that_ended_the_transaction(1).await;
    nothing_happens_after_a_savepoint_that_ended_the_transaction(8).await;
}

/// As a dead letter layer inside the inbox does: the redriven copy has its turn.
async fn what_a_layer_inside_has_set_aside_is_not_recorded<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let outcomes = [Outcome::DeadLettered, Outcome::Deferred, Outcome::Superseded, Outcome::Duplicate];
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let half = service_fn(move |message: Message| async move {
            book::<DB>(&mut *Tx::<DB>::take(&message)?, 5).await?;
            Ok::<_, Failure>(outcome)
        });
        let id = n.to_string();
        assert_eq!(run(&stack(&bank.layer(), half), message(&id)).await.unwrap(), outcome);
        assert_eq!((bank.balance().await, bank.records().await), (5 * n as i64, n as i64), "{outcome:?}");
        let books = handler(|mut tx: Tx<DB>| async move { book::<DB>(&mut tx, 5).await });
        assert_eq!(run(&stack(&bank.layer(), books), message(&id)).await.unwrap(), Outcome::Processed);
    }
}

async fn a_retry_inside_does_not_book_twice<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let fails_once = service_fn(move |message: Message| {
        let calls = counted.clone();
        async move {
            book::<DB>(&mut *Tx::<DB>::take(&message)?, 5).await?;
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Failure::transient("the mail server is away")),
                _ => Ok(()),
            }
        }
    });
    let retry = RetryLayer::fixed(Duration::from_millis(1)).max_attempts(3);
    let inside =
        tower::ServiceBuilder::new().layer(bank.layer()).layer(retry.clone()).service(fails_once.clone());
    let failure = run(&inside, message("a")).await.unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("outside the inbox"), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
    calls.store(0, Ordering::SeqCst);
    let outside = tower::ServiceBuilder::new().layer(retry).layer(bank.layer()).service(fails_once);
    assert_eq!(run(&outside, message("a")).await.unwrap(), Outcome::Processed);
    assert_eq!((bank.balance().await, bank.records().await), (5, 1));
}

async fn two_layers_that_would_wait_for_each_other_are_refused<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let books = handler(|mut tx: Tx<DB>| async move { book::<DB>(&mut tx, 5).await });
    let twice = tower::ServiceBuilder::new().layer(bank.layer()).layer(bank.layer()).service(books);
    let answer = tokio::time::timeout(Duration::from_secs(20), run(&twice, message("a"))).await;
    let failure = answer.expect("it waits for itself").unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("two inbox layers"), "{failure:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
}
