//! Record and effect happen together, and once.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use consumer_core::{
    Failure, FailureKind, IdempotencyKey, Message, Outcome, dedup::MissingKey, handler::handler,
};
use consumer_sql::Tx;
use tokio::sync::Semaphore;

use super::bank::{Bank, Under, book, message, run, stack};
use crate::on_both;

on_both! {
    a_duplicate_after_a_success_runs_nothing
    a_failed_handler_leaves_no_trace
    of_two_at_once_the_second_waits_for_the_first
    after_a_failed_first_it_is_the_seconds_turn
    another_payload_under_a_known_key_is_a_conflict
    a_message_without_a_key_is_refused_or_leaves_no_record
    consumers_are_independent_of_each_other
    what_a_dedup_layer_outside_sees_is_unchanged
}

async fn books<DB: Under>(mut tx: Tx<DB>) -> Result<(), Failure> {
    book::<DB>(&mut tx, 5).await
}

async fn a_duplicate_after_a_success_runs_nothing<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let stack = stack(&bank.layer(), handler(books::<DB>));
    assert_eq!(run(&stack, message("a")).await.unwrap(), Outcome::Processed);
    assert_eq!(run(&stack, message("a")).await.unwrap(), Outcome::Duplicate);
    assert_eq!(run(&stack, message("b")).await.unwrap(), Outcome::Processed);
    assert_eq!((bank.balance().await, bank.records().await), (10, 2));
}

async fn a_failed_handler_leaves_no_trace<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let calls = Arc::new(AtomicU32::new(0));
    let fails_once = {
        let calls = calls.clone();
        move |mut tx: Tx<DB>| {
            let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                book::<DB>(&mut tx, 5).await?;
                if first { Err(Failure::permanent("no")) } else { Ok(()) }
            }
        }
    };
    let stack = stack(&bank.layer(), handler(fails_once));
    let failure = run(&stack, message("a")).await.unwrap_err();
    assert!(failure.is_permanent(), "{}", failure.chain());
    assert_eq!((bank.balance().await, bank.records().await), (0, 0));
    assert_eq!(run(&stack, message("a")).await.unwrap(), Outcome::Processed);
    assert_eq!((bank.balance().await, bank.records().await), (5, 1));
}

/// Two tasks with one message; the first to enter is held until both are there.
async fn two_at_once<DB: Under>(first_succeeds: bool) -> (Bank<DB>, Vec<Result<Outcome, Failure>>, u32) {
    let bank = Bank::<DB>::open().await;
    let (calls, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let (entered, go) = (calls.clone(), gate.clone());
    let waits = move |mut tx: Tx<DB>| {
        let first = entered.fetch_add(1, Ordering::SeqCst) == 0;
        let go = go.clone();
        async move {
            book::<DB>(&mut tx, 5).await?;
            if first {
                go.acquire().await.unwrap().forget();
            }
            if first && !first_succeeds { Err(Failure::transient("no")) } else { Ok(()) }
        }
    };
    let stack = stack(&bank.layer(), handler(waits));
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let stack = stack.clone();
            tokio::spawn(async move { run(&stack, message("a")).await })
        })
        .collect();
    super::bank::until("one is in its handler", || async { calls.load(Ordering::SeqCst) == 1 }).await;
    // The other has had every opportunity.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert!(tasks.iter().all(|task| !task.is_finished()), "one did not wait for the other");
    gate.add_permits(1);
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    (bank, answers, calls.load(Ordering::SeqCst))
}

async fn of_two_at_once_the_second_waits_for_the_first<DB: Under>() {
    let (bank, answers, calls) = two_at_once::<DB>(true).await;
    let mut answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    answers.sort_by_key(|outcome| *outcome == Outcome::Duplicate);
    assert_eq!(answers, [Outcome::Processed, Outcome::Duplicate]);
    assert_eq!((bank.balance().await, calls), (5, 1));
}

async fn after_a_failed_first_it_is_the_seconds_turn<DB: Under>() {
    let (bank, answers, calls) = two_at_once::<DB>(false).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok(Outcome::Processed))).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert_eq!((bank.balance().await, calls), (5, 2));
}

async fn another_payload_under_a_known_key_is_a_conflict<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let other = || Message::builder().id("a").payload("6").build();
    let strict = stack(&bank.layer(), handler(books::<DB>));
    run(&strict, message("a")).await.unwrap();
    let failure = run(&strict, other()).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Conflict, "{}", failure.chain());
    let lenient = stack(&bank.layer().no_fingerprint(), handler(books::<DB>));
    assert_eq!(run(&lenient, other()).await.unwrap(), Outcome::Duplicate);
    let panics = bank.layer().fingerprint(|_| panic!("broken"));
    let failure = run(&stack(&panics, handler(books::<DB>)), other()).await.unwrap_err();
    assert!(failure.is_permanent() && failure.chain().contains("fingerprint"), "{}", failure.chain());
    assert_eq!(bank.balance().await, 5);
}

async fn a_message_without_a_key_is_refused_or_leaves_no_record<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let layer = bank.layer().key(IdempotencyKey::header("payment"));
    let failure = run(&stack(&layer, handler(books::<DB>)), message("a")).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::NoKey);
    assert!(failure.chain().contains("the header `payment`"), "{}", failure.chain());
    let layer = layer.missing_key(MissingKey::Process);
    let keyless = stack(&layer, handler(books::<DB>));
    for _ in 0..2 {
        assert_eq!(run(&keyless, message("a")).await.unwrap(), Outcome::Processed);
    }
    assert_eq!((bank.balance().await, bank.records().await), (10, 0));
}

async fn consumers_are_independent_of_each_other<DB: Under>() {
    let bank = Bank::<DB>::open().await;
    let other = consumer_sql::InboxLayer::new(bank.pool.clone(), "audit").tables(bank.tables.clone());
    for layer in [bank.layer(), other] {
        let stack = stack(&layer, handler(books::<DB>));
        assert_eq!(run(&stack, message("a")).await.unwrap(), Outcome::Processed);
    }
    assert_eq!(bank.records().await, 2);
}

async fn what_a_dedup_layer_outside_sees_is_unchanged<DB: Under>() {
    use consumer_core::{DedupLayer, memory::MemoryStore};
    let bank = Bank::<DB>::open().await;
    let stack = |store: &MemoryStore| {
        tower::ServiceBuilder::new()
            .layer(DedupLayer::new(store.clone(), "bank"))
            .layer(bank.layer())
            .service(handler(books::<DB>))
    };
    let store = MemoryStore::new();
    assert_eq!(run(&stack(&store), message("a")).await.unwrap(), Outcome::Processed);
    // The dedup store forgets, the inbox does not.
    let forgetful = MemoryStore::new();
    assert_eq!(run(&stack(&forgetful), message("a")).await.unwrap(), Outcome::Duplicate);
    let other = Message::builder().id("a").payload("6").build();
    let failure = run(&stack(&MemoryStore::new()), other).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Conflict);
    assert_eq!(bank.balance().await, 5);
}
