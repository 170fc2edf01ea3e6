//! Letters being read and settled.

use std::{collections::HashMap, fmt, time::SystemTime, vec};

use async_trait::async_trait;
use consumer_core::dead_letters::{BoxFuture, DeadLetter, DeadLettersError, Letters, Place, Settled};
use tokio::sync::mpsc;

use super::{
    marks,
    reader::{self, Batch, Letter},
    settler::Settler,
};

/// No letter lies at an offset like that.
const NOWHERE: Place = Place { scope: 0, seq: u64::MAX };

pub(super) struct Session {
    topic: String,
    expected: u64,
    batches: mpsc::Receiver<Batch>,
    batch: vec::IntoIter<Letter>,
    complete: bool,
    /// By partition, the offset and timestamp of what was read, in the order of offsets: the mark of a letter needs both.
    read: HashMap<u64, Vec<(u64, i64)>>,
    settler: Settler,
}

impl Session {
    pub(super) fn new(topic: &str, expected: u64, batches: mpsc::Receiver<Batch>, settler: Settler) -> Self {
        Self {
            topic: topic.to_owned(),
            expected,
            batches,
            batch: Vec::new().into_iter(),
            complete: false,
            read: HashMap::new(),
            settler,
        }
    }

    fn timestamp(&self, place: Place) -> Option<i64> {
        let read = self.read.get(&place.scope)?;
        let index = read.binary_search_by_key(&place.seq, |(offset, _)| *offset).ok()?;
        Some(read[index].1)
    }
}

#[async_trait]
impl Letters for Session {
    fn expected(&self) -> Option<u64> {
        Some(self.expected)
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        loop {
            if let Some(Letter { place, timestamp, message }) = self.batch.next() {
                self.read.entry(place.scope).or_default().push((place.seq, timestamp));
                return Ok(Some(DeadLetter::new(place, message)));
            }
            if self.complete {
                return Ok(None);
            }
            match self.batches.recv().await {
                Some(Batch::Letters(letters)) => self.batch = letters.into_iter(),
                Some(Batch::Complete) => self.complete = true,
                Some(Batch::Failed(error)) => return Err(error),
                None => return Err(reader::ended(&self.topic)),
            }
        }
    }

    /// Writes what a mark would need the rights for, and no mark.
    fn prepare(&mut self) -> BoxFuture<Result<(), DeadLettersError>> {
        self.settler.settle(marks::tombstone(NOWHERE))
    }

    fn settle(&mut self, place: Place, how: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        let Some(timestamp) = self.timestamp(place) else {
            let message = format!("the dead letter {place} of `{}` was not read here", self.topic);
            return Box::pin(async { Err(DeadLettersError::new(message)) });
        };
        self.settler.settle(marks::mark(place, timestamp, how, SystemTime::now()))
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        self.settler.close().await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letters")
            .field("topic", &self.topic)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}
