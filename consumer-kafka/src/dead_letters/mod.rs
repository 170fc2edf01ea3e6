//! Dead letters in a topic.
//!
//! A topic does not empty: that a letter is dealt with is a record in the compacted topic `<topic>.settled`, a *mark*,
//! which is read completely before the letters are. A mark hides the one letter it was written for and no other that
//! comes to lie at the same offset, so a topic that was deleted and created anew shows all that is in it.

pub(crate) mod marks;
mod reader;
mod session;
mod settler;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use consumer_core::dead_letters::{DeadLetters, DeadLettersError, Letters};

use crate::{
    KafkaAdmin,
    config::Connection,
    error::{KafkaError, Kind},
};
use reader::Reading;
use session::Session;
use settler::Settler;

/// A topic of dead letters. Made by [`KafkaAdmin::dead_letters`].
///
/// Reading joins no group and commits nothing: it changes nothing at the broker, and any number may read at once.
/// Letters come partition by partition, each in the order of its offsets, up to the end of the partition as it was at
/// the opening. What lies behind a transaction that is still open comes when that has ended. A broker that is away is
/// waited for, up to the [timeout](KafkaAdmin::timeout) without a message; letters that were not read are an error then,
/// never an end.
///
/// A letter is settled by a record in the topic `<topic>.settled`, which the first one creates:
///
/// - key: `<partition>@<offset>` of the letter, such as `3@17`;
/// - value: `{"settled":"redriven","at":"2026-01-31T12:00:00.000Z","letter_timestamp":1769860000000}`, or `discarded`;
///   `letter_timestamp` is that of the letter's record in milliseconds, -1 if it has none. A letter with another
///   timestamp is another letter, and is not hidden. No value means not settled.
///
/// Beside what is on the way, a session holds 16 bytes for each letter that it has read and about 25 for each mark.
/// Marks of letters that retention has deleted are taken away when a session ends that settled something.
#[derive(Clone)]
pub struct KafkaDeadLetters {
    admin: KafkaAdmin,
    connection: Connection,
    patience: Duration,
    topic: String,
}

impl KafkaDeadLetters {
    pub(crate) fn new(admin: KafkaAdmin, connection: Connection, patience: Duration, topic: String) -> Self {
        Self { admin, connection, patience, topic }
    }

    /// The topic that says what is settled: `<topic>.settled`.
    pub fn settled_topic(&self) -> String {
        format!("{}.settled", self.topic)
    }
}

impl fmt::Debug for KafkaDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaDeadLetters")
            .field("topic", &self.topic)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetters for KafkaDeadLetters {
    async fn open(&self) -> Result<Box<dyn Letters>, DeadLettersError> {
        let settled = self.settled_topic();
        let Some(partitions) = self.admin.partitions(&self.topic).await.map_err(in_words)? else {
            let (topic, brokers) = (&self.topic, self.connection.brokers());
            let message = format!("the dead-letter topic `{topic}` does not exist at kafka {brokers}");
            return Err(DeadLettersError::missing(message));
        };
        let marks = self.admin.partitions(&settled).await.map_err(in_words)?;
        let reading = Reading {
            topic: self.topic.as_str().into(),
            partitions,
            marks: marks.map(|partitions| (settled.clone(), partitions)),
            patience: self.patience,
        };
        let (opened, batches) = reader::start(&self.connection, reading)?;
        let opened = opened.await.unwrap_or_else(|_| Err(reader::ended(&self.topic)))?;
        let settler = Settler::start(self.clone(), settled, opened.obsolete);
        Ok(Box::new(Session::new(&self.topic, opened.expected, batches, settler)))
    }
}

fn in_words(error: KafkaError) -> DeadLettersError {
    let message = error.to_string();
    match error.kind() {
        Kind::Unreachable => DeadLettersError::unavailable(message),
        Kind::MissingTopic => DeadLettersError::missing(message),
        _ => DeadLettersError::new(message),
    }
}
