//! A topic in memory as dead letters.

use std::{collections::VecDeque, future::ready, sync::Arc};

use async_trait::async_trait;

use super::MemoryBroker;
use crate::dead_letters::{BoxFuture, DeadLetter, DeadLetters, DeadLettersError, Letters, Place, Settled};

/// Dead letters of a [`MemoryBroker`]. Settling one removes it from its topic.
#[derive(Debug, Clone)]
pub struct MemoryDeadLetters {
    broker: MemoryBroker,
    topic: Arc<str>,
}

impl MemoryBroker {
    /// The dead letters in a topic.
    pub fn dead_letters(&self, topic: impl Into<Arc<str>>) -> MemoryDeadLetters {
        MemoryDeadLetters { broker: self.clone(), topic: topic.into() }
    }
}

#[async_trait]
impl DeadLetters for MemoryDeadLetters {
    async fn open(&self) -> Result<Box<dyn Letters>, DeadLettersError> {
        let places = {
            let state = self.broker.lock();
            let Some(topic) = state.topic(&self.topic) else {
                return Err(DeadLettersError::missing(format!("the topic `{}` does not exist", self.topic)));
            };
            let partitions = state.topics[topic].partitions.iter().enumerate();
            let place = |(scope, seq): (usize, usize)| Place { scope: scope as u64, seq: seq as u64 };
            partitions
                .flat_map(|(id, log)| log.iter().enumerate().map(move |(seq, record)| (id, seq, record)))
                .filter(|(.., record)| record.is_some())
                .map(|(id, seq, _)| place((id, seq)))
                .collect()
        };
        Ok(Box::new(MemoryLetters { letters: self.clone(), places }))
    }
}

#[derive(Debug)]
struct MemoryLetters {
    letters: MemoryDeadLetters,
    places: VecDeque<Place>,
}

#[async_trait]
impl Letters for MemoryLetters {
    fn expected(&self) -> Option<u64> {
        Some(self.places.len() as u64)
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        let state = self.letters.broker.lock();
        let Some(topic) = state.topic(&self.letters.topic) else { return Ok(None) };
        while let Some(place) = self.places.pop_front() {
            let log = state.topics[topic].partitions.get(place.scope as usize);
            if let Some(Some(record)) = log.and_then(|log| log.get(place.seq as usize)) {
                return Ok(Some(DeadLetter::new(place, record.clone())));
            }
        }
        Ok(None)
    }

    fn settle(&mut self, place: Place, _: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        self.letters.broker.remove_record(&self.letters.topic, place.scope as u32, place.seq);
        Box::pin(ready(Ok(())))
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        Ok(())
    }
}
