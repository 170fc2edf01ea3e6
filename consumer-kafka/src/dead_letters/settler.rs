//! Writes marks, in a task of its own: a call of `settle` enqueues, whatever becomes of its future.

use std::{collections::VecDeque, future::pending, pin::Pin};

use consumer_core::{
    Message, Outgoing, PublishError, Publisher,
    dead_letters::{BoxFuture, DeadLettersError, Place},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{KafkaDeadLetters, in_words, marks};
use crate::{KafkaPublisher, error::KafkaError};

/// One partition: every session reads all of it, and it keeps the order of the records of a key whatever writes them.
const PARTITIONS: u32 = 1;
/// The segment that is being written is never compacted, so it must not last: by default it does for a GiB or a week.
const SETTINGS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("min.cleanable.dirty.ratio", "0.1"),
    ("segment.bytes", "16777216"),
    ("segment.ms", "3600000"),
];

type Outcome = Result<(), DeadLettersError>;

pub(super) struct Settler {
    requests: mpsc::UnboundedSender<Request>,
    task: JoinHandle<Outcome>,
}

struct Request {
    mark: Message,
    answer: oneshot::Sender<Outcome>,
}

impl Settler {
    /// `obsolete` are places that no letter lies at any more: their marks are taken away in the end.
    pub(super) fn start(letters: KafkaDeadLetters, topic: String, obsolete: Vec<Place>) -> Self {
        let (requests, received) = mpsc::unbounded_channel();
        let work = Work { letters, topic, publisher: None, sent: VecDeque::new(), unheard: None };
        Self { requests, task: tokio::spawn(work.run(received, obsolete)) }
    }

    pub(super) fn settle(&self, mark: Message) -> BoxFuture<Outcome> {
        let (answer, answered) = oneshot::channel();
        // If the task is gone, so is the sender of the answer.
        let _ = self.requests.send(Request { mark, answer });
        Box::pin(async { answered.await.unwrap_or_else(|_| Err(gone())) })
    }

    /// Waits until everything is answered. An error that nobody waited for is told here.
    pub(super) async fn close(self) -> Outcome {
        drop(self.requests);
        self.task.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> DeadLettersError {
    DeadLettersError::unavailable("what settles dead letters has ended with the runtime it ran in")
}

struct Work {
    letters: KafkaDeadLetters,
    topic: String,
    /// Set once the topic is known to be there.
    publisher: Option<KafkaPublisher>,
    /// In the order of their confirmation, since they go to one partition.
    sent: VecDeque<Sent>,
    /// An error whose future was dropped.
    unheard: Option<DeadLettersError>,
}

struct Sent {
    confirmed: Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send>>,
    answer: oneshot::Sender<Outcome>,
}

impl Work {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>, obsolete: Vec<Place>) -> Outcome {
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.send(request, &mut requests).await,
                    None => break,
                },
                outcome = first(&mut self.sent) => self.answer_first(outcome),
            }
        }
        while !self.sent.is_empty() {
            let outcome = first(&mut self.sent).await;
            self.answer_first(outcome);
        }
        if let Some(publisher) = self.publisher.take() {
            tidy(&publisher, &self.topic, obsolete).await;
        }
        self.unheard.map_or(Ok(()), Err)
    }

    async fn send(&mut self, request: Request, requests: &mut mpsc::UnboundedReceiver<Request>) {
        if let Err(error) = self.prepare().await {
            // For all that waited meanwhile: each trying again by itself would take its time once more.
            let mut failed = Some(request);
            while let Some(Request { answer, .. }) = failed {
                self.answer(answer, Err(in_words(KafkaError::new(error.kind(), error.to_string()))));
                failed = requests.try_recv().ok();
            }
            return;
        }
        if let Some(publisher) = &self.publisher {
            let confirmed = Box::pin(publisher.publish(Outgoing::new(self.topic.as_str(), request.mark)));
            self.sent.push_back(Sent { confirmed, answer: request.answer });
        }
    }

    /// Makes sure of the topic, and that it keeps what is written to it.
    async fn prepare(&mut self) -> Result<(), KafkaError> {
        if self.publisher.is_some() {
            return Ok(());
        }
        let (admin, topic) = (&self.letters.admin, &self.topic);
        let settings = || SETTINGS.map(|(name, value)| format!("{name}={value}")).join(", ");
        let created = admin.ensure_topic(topic, PARTITIONS, &SETTINGS).await.map_err(|error| {
            KafkaError::new(
                error.kind(),
                format!(
                    "{error}; it says which dead letters are dealt with: let this user create it, or create it with \
                     {PARTITIONS} partition and {}",
                    settings()
                ),
            )
        })?;
        if created {
            tracing::info!(
                topic,
                settings = settings(),
                "created the topic that says which dead letters are settled"
            );
        } else {
            match admin.setting(topic, "cleanup.policy").await {
                Ok(Some(policy)) if policy != "compact" => {
                    return Err(KafkaError::new(
                        crate::error::Kind::Other,
                        format!(
                            "the topic `{topic}` would forget which dead letters are dealt with: its cleanup.policy is \
                             `{policy}`; set {}",
                            settings()
                        ),
                    ));
                }
                Ok(_) => {}
                // Writing may be permitted all the same.
                Err(error) => {
                    tracing::warn!(topic, %error, "whether the topic is compacted could not be seen")
                }
            }
        }
        self.publisher = Some(KafkaPublisher::with(self.letters.connection.shared()).build()?);
        Ok(())
    }

    fn answer_first(&mut self, outcome: Result<(), PublishError>) {
        let Some(Sent { answer, .. }) = self.sent.pop_front() else { return };
        let outcome = outcome.map_err(|error| {
            if error.is_unroutable() {
                // Deleted meanwhile: the next one looks again.
                self.publisher = None;
            }
            let message = format!("that a dead letter is dealt with could not be written: {error}");
            if error.is_transient() {
                DeadLettersError::unavailable(message)
            } else {
                DeadLettersError::new(message)
            }
        });
        self.answer(answer, outcome);
    }

    fn answer(&mut self, answer: oneshot::Sender<Outcome>, outcome: Outcome) {
        if let Err(Err(error)) = answer.send(outcome) {
            self.unheard = Some(error);
        }
    }
}

/// Takes obsolete marks away, so that the topic does not grow for ever. What fails is left for the next time.
async fn tidy(publisher: &KafkaPublisher, topic: &str, obsolete: Vec<Place>) {
    let tombstones: Vec<_> = obsolete
        .into_iter()
        .map(|place| publisher.publish(Outgoing::new(topic, marks::tombstone(place))))
        .collect();
    for confirmed in tombstones {
        if let Err(error) = confirmed.await {
            tracing::warn!(topic, %error, "marks of letters that are gone are left for the next time");
            return;
        }
    }
}

async fn first(sent: &mut VecDeque<Sent>) -> Result<(), PublishError> {
    match sent.front_mut() {
        Some(sent) => sent.confirmed.as_mut().await,
        None => pending().await,
    }
}
