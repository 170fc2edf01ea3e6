//! A transaction on its way: who has it, and how it ends.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection, Pool, pool::PoolConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{Database, SqlError};

/// A rollback waits for a statement that the handler has left behind; after this time its connection is closed.
const ROLLBACK: Duration = Duration::from_secs(5);
/// A server that has not answered the commit by then may have done it or not.
const COMMIT: Duration = Duration::from_secs(30);

/// A connection in a transaction. Dropped, it is rolled back, and the connection is not used again in a state that nobody
/// knows.
pub(crate) struct Open<DB: Database> {
    /// None when it has ended.
    connection: Option<PoolConnection<DB>>,
    /// Where only one may write, this one's turn.
    _turn: Option<OwnedSemaphorePermit>,
}

impl<DB: Database> Open<DB> {
    pub(crate) async fn begin(
        pool: &Pool<DB>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, sqlx::Error> {
        let mut open = Self { connection: None, _turn: turn };
        loop {
            open.connection = Some(pool.acquire().await?);
            let begin = sqlx::SqlSafeStr::into_sql_str(DB::BEGIN);
            match DB::TransactionManager::begin(open.connection(), Some(begin)).await {
                // A handler has ended its transaction by a statement, and sqlx counts it still: no use is left in this one.
                Err(sqlx::Error::InvalidSavePointStatement) => {
                    if let Some(connection) = open.connection.take() {
                        let _ = connection.close().await;
                    }
                }
                begun => return begun.map(|()| open),
            }
        }
    }

    #[expect(clippy::expect_used, reason = "only what consumes the transaction takes the connection")]
    pub(super) fn get(&self) -> &DB::Connection {
        self.connection.as_ref().expect("a transaction has its connection until it ends")
    }

    #[expect(clippy::expect_used, reason = "only what consumes the transaction takes the connection")]
    pub(crate) fn connection(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect("a transaction has its connection until it ends")
    }

    /// # Errors
    /// When it is not known to be committed.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let said = timeout(COMMIT, DB::commit(self.connection())).await;
        said.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))?;
        self.hand_back();
        Ok(())
    }

    /// For one in which a handler has been: it may have left anything behind.
    pub(super) async fn rollback(mut self) {
        let rollback = async {
            while self.get().is_in_transaction() {
                DB::TransactionManager::rollback(self.connection()).await?;
            }
            Ok::<_, sqlx::Error>(())
        };
        if let Ok(Ok(())) = timeout(ROLLBACK, rollback).await {
            self.hand_back();
        }
    }

    /// For one in which every statement has been answered: the rollback goes out with whatever is sent next.
    pub(crate) fn discard(mut self) {
        DB::TransactionManager::start_rollback(self.connection());
        self.hand_back();
    }

    fn hand_back(mut self) {
        // A savepoint that is still open would be the next one's. (SQLite's count of them lags behind, in its thread.)
        if !self.get().is_in_transaction() || DB::ONE_WRITER {
            self.connection = None;
        }
    }
}

impl<DB: Database> Drop for Open<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            DB::abandon(connection);
        }
    }
}

/// What a commit of the inbox's means that is not known to be done.
pub(super) fn not_committed(error: sqlx::Error) -> SqlError {
    SqlError::driver("the inbox's transaction could not be committed", error)
}

/// Where the transaction of a message lies while nobody uses it: the layer and the handler share it.
pub(super) struct Slot<DB: Database> {
    state: Mutex<State<DB>>,
    /// Of the message's record.
    hash: Option<u128>,
    /// The attempt that has taken it first, from 1.
    attempt: AtomicU32,
}

enum State<DB: Database> {
    Here(Open<DB>),
    Taken,
    /// The layer is done with the message.
    Over,
}

/// Why a transaction could not be taken.
pub(super) enum NotHere {
    Taken,
    Over,
    /// An earlier attempt has had it.
    Retried,
}

impl<DB: Database> Slot<DB> {
    fn state(&self) -> MutexGuard<'_, State<DB>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the message with this record is within the layer.
    pub(super) fn is_open_for(&self, hash: u128) -> bool {
        self.hash == Some(hash) && !matches!(*self.state(), State::Over)
    }

    /// What an earlier attempt has done is still in it: only that attempt can have it again.
    pub(super) fn take(&self, attempt: u32) -> Result<Open<DB>, NotHere> {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Taken) {
            State::Here(open) => {
                let first = self.attempt.load(Ordering::Relaxed);
                if first != 0 && first != attempt {
                    *state = State::Here(open);
                    return Err(NotHere::Retried);
                }
                self.attempt.store(attempt, Ordering::Relaxed);
                Ok(open)
            }
            State::Taken => Err(NotHere::Taken),
            State::Over => {
                *state = State::Over;
                Err(NotHere::Over)
            }
        }
    }

    /// After the end of the message it is rolled back.
    pub(super) fn put_back(&self, open: Open<DB>) {
        let mut state = self.state();
        if matches!(*state, State::Taken) {
            *state = State::Here(open);
        } else {
            drop(state);
            drop(open);
        }
    }

    fn end(&self) -> Option<Open<DB>> {
        match mem::replace(&mut *self.state(), State::Over) {
            State::Here(open) => Some(open),
            State::Taken | State::Over => None,
        }
    }
}

/// The layer's hold of a slot. Dropped, it ends the transaction by rollback, now or when whoever has it lets go.
pub(super) struct Lent<DB: Database>(Arc<Slot<DB>>);

impl<DB: Database> Lent<DB> {
    pub(super) fn new(open: Open<DB>, hash: Option<u128>) -> Self {
        Self(Arc::new(Slot { state: Mutex::new(State::Here(open)), hash, attempt: AtomicU32::new(0) }))
    }

    /// For the message that goes inwards.
    pub(super) fn slot(&self) -> Arc<Slot<DB>> {
        self.0.clone()
    }

    pub(super) fn was_taken(&self) -> bool {
        self.0.attempt.load(Ordering::Relaxed) != 0
    }

    /// The transaction, unless somebody still has it.
    pub(super) fn end(&self) -> Option<Open<DB>> {
        self.0.end()
    }
}

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        // Outside of the lock.
        let open = self.end();
        drop(open);
    }
}
