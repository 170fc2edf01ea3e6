//! A future that is dropped leaves all or nothing.

use std::{future::poll_fn, task::Poll, time::Duration};

use consumer_core::{Failure, Outcome, handler::handler};
use consumer_sql::Tx;
use tower::Service;

use super::bank::{Bank, Under, book, message, run, stack, until};
use crate::on_both;

on_both! {
    dropped_at_any_poll_it_leaves_all_or_nothing
}

async fn books_twice<DB: Under>(mut tx: Tx<DB>) -> Result<(), Failure> {
    book::<DB>(&mut tx, 2).await?;
    book::<DB>(&mut tx, 3).await
}

/// A pool of one connection, so that a dirty one would be the next one's.
async fn dropped_at_any_poll_it_leaves_all_or_nothing<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let narrow = DB::pool(&bank.home, 1, Duration::from_secs(30));
    let layer = bank.layer_on(narrow);
    let mut stack = stack(&layer, handler(books_twice::<DB>));
    let mut ids = 0;
    // At once while something is asked, and when the answer is there and nobody has looked at it.
    for is_answered in [false, true, false, true] {
        for polls in 0.. {
            ids += 1;
            let id = ids.to_string();
            let mut call = stack.call(message(&id));
            let mut left = polls;
            let outcome = poll_fn(|cx| {
                if left == 0 {
                    return Poll::Ready(None);
                }
                left -= 1;
                match call.as_mut().poll(cx) {
                    Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                    Poll::Pending if left == 0 && !is_answered => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await;
            drop(call);
            let again = run(&stack, message(&id)).await.unwrap();
            assert!(matches!(again, Outcome::Processed | Outcome::Duplicate));
            let sum = 5 * i64::from(ids);
            assert_eq!(
                (bank.balance().await, bank.records().await),
                (sum, ids.into()),
                "after {polls} polls"
            );
            if let Some(outcome) = outcome {
                assert_eq!((outcome.unwrap(), again), (Outcome::Processed, Outcome::Duplicate));
                assert!(polls > 1, "one poll is no test");
                break;
            }
        }
    }
    until("no transaction is left open", || async { layer.check().await.is_ok() }).await;
}
