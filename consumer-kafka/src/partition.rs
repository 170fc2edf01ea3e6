//! One assignment of one partition, as the source and its thread share it.

use std::sync::{Arc, PoisonError, atomic::AtomicU64};

use crate::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    tracker::Progress,
};

/// An assignment of a partition: assigned again, it is another one with another scope.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) scope: u64,
    pub(crate) topic: Arc<str>,
    pub(crate) id: i32,
    progress: Mutex<Progress>,
    released: AtomicBool,
    /// The offset behind the newest message, from the statistics; negative when unknown.
    pub(crate) end: AtomicI64,
    /// Where consuming began; negative when unknown.
    pub(crate) begin: AtomicI64,
    caught_up: Mutex<(u64, u64)>,
}

impl Partition {
    pub(crate) fn new(topic: Arc<str>, id: i32) -> Arc<Self> {
        // 0 is left out so that a forgotten scope is not taken for a real one.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            scope: NEXT.fetch_add(1, Ordering::Relaxed),
            topic,
            id,
            progress: Mutex::default(),
            released: AtomicBool::new(false),
            end: AtomicI64::new(-1),
            begin: AtomicI64::new(-1),
            caught_up: Mutex::default(),
        })
    }

    /// Nothing was fetched ahead when everything below `taken` had been taken: up to `next`, where the next fetch
    /// begins, there are no messages, only markers of transactions and the like.
    pub(crate) fn caught_up(&self, taken: u64, next: i64) {
        if let Ok(next) = u64::try_from(next) {
            *self.caught_up.lock().unwrap_or_else(PoisonError::into_inner) = (taken, next);
        }
    }

    /// How many messages lie behind `position`, markers at the end left out; `None` while that is not known.
    pub(crate) fn lag(&self, position: Option<u64>) -> Option<u64> {
        let end = u64::try_from(self.end.load(Ordering::Relaxed)).ok()?;
        let begin = u64::try_from(self.begin.load(Ordering::Relaxed)).ok();
        let mut position = position.or(begin)?;
        let (taken, next) = *self.caught_up.lock().unwrap_or_else(PoisonError::into_inner);
        if position >= taken {
            position = position.max(next);
        }
        Some(end.saturating_sub(position))
    }

    pub(crate) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn advance(&self, to: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_at_the_end_of_the_log_are_no_lag() {
        let partition = Partition::new("t".into(), 0);
        assert_eq!(partition.lag(Some(4)), None);
        partition.end.store(6, Ordering::Relaxed);
        assert_eq!(partition.lag(Some(4)), Some(2));
        partition.caught_up(5, 6);
        assert_eq!(partition.lag(Some(5)), Some(0), "5 is a marker");
        assert_eq!(partition.lag(Some(4)), Some(2), "4 was taken, and waits in the buffer");
    }
}
