//! What messages and batches are told when they fail.

use std::{error::Error, fmt, sync::Arc};

use consumer_core::Failure;

use crate::SqlError;

pub(super) fn kept() -> Failure {
    Failure::permanent(
        "the handler has returned and something it has spawned still has the transaction: nothing is committed",
    )
}

pub(super) fn within_itself() -> Failure {
    Failure::permanent(
        "two inbox layers around the handler record the same key for the same consumer: the inner one would wait for \
         the outer one for ever; leave one out, or give each a consumer name of its own",
    )
}

pub(super) fn handed_back() -> Failure {
    Failure::cancelled("shutdown or rebalance")
}

pub(super) fn failed(error: sqlx::Error) -> SqlError {
    SqlError::driver("the inbox's transaction has failed", error)
}

pub(super) fn lost() -> SqlError {
    failed(sqlx::Error::Protocol("another message of the batch has kept it".to_owned()))
}

/// By sqlx, which takes back a savepoint that has not begun as if it had: the records went as well.
pub(super) fn rolled_back() -> SqlError {
    let why = "a message of the batch has not got its savepoint, and went on: all of it is rolled back";
    failed(sqlx::Error::Protocol(why.to_owned()))
}

pub(super) fn gone() -> Failure {
    Failure::transient("the batch has ended without an answer")
}

/// What several messages are told.
#[derive(Debug)]
pub(super) struct BatchFailed(pub(super) Arc<SqlError>);

impl fmt::Display for BatchFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the batch of this message failed")
    }
}

impl Error for BatchFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
