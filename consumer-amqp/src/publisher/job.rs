//! One publish on its way.

use std::sync::Arc;

use bytes::Bytes;
use consumer_core::{Outgoing, PublishError};
use lapin::{BasicProperties, message::BasicReturnMessage, types::ShortString};
use tokio::{sync::oneshot, time::Instant};

use super::{
    properties::properties,
    returns::{Matches, Verdict},
};

pub(super) type Answer = oneshot::Sender<Result<(), PublishError>>;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) payload: Bytes,
    pub(super) properties: BasicProperties,
    pub(super) deadline: Instant,
    /// None when it was given up: then nothing waits for the broker's answer.
    answer: Option<Answer>,
    /// What it takes of the publisher's bounds.
    _place: Place,
}

/// A share of the bounds, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    bounds: Arc<super::Bounds>,
    bytes: usize,
}

impl Place {
    pub(super) fn new(bounds: Arc<super::Bounds>, bytes: usize) -> Option<Self> {
        bounds.take(bytes).then_some(Self { bounds, bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bounds.give_back(self.bytes);
    }
}

impl Job {
    pub(super) fn new(
        exchange: &ShortString,
        target: &str,
        outgoing: &Outgoing,
        deadline: Instant,
        place: Place,
        answer: Answer,
    ) -> Result<Self, (PublishError, Answer)> {
        let Ok(routing_key) = ShortString::try_new(target) else {
            let length = target.len();
            let error = format!("a routing key of {length} bytes is longer than the 255 that AMQP carries");
            return Err((PublishError::unroutable(error), answer));
        };
        if routing_key.as_str().is_empty() && exchange.as_str().is_empty() {
            return Err((PublishError::unroutable("the name of the queue to publish to is empty"), answer));
        }
        match properties(outgoing) {
            Ok(properties) => Ok(Self {
                exchange: exchange.clone(),
                routing_key,
                payload: outgoing.message().payload().clone(),
                properties,
                deadline,
                answer: Some(answer),
                _place: place,
            }),
            Err(error) => Err((error, answer)),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) fn finish(&mut self, outcome: Result<(), PublishError>) {
        if let Some(answer) = self.answer.take() {
            // Whoever asked may be gone.
            let _ = answer.send(outcome);
        }
    }

    /// As errors name it.
    pub(super) fn target(&self) -> String {
        if self.exchange.as_str().is_empty() {
            format!("the queue `{}`", self.routing_key)
        } else {
            format!("the exchange `{}` with the routing key `{}`", self.exchange, self.routing_key)
        }
    }

    pub(super) fn end(mut self, verdict: Verdict, address: &str) {
        let target = self.target();
        let outcome = match verdict {
            Verdict::Stored => Ok(()),
            Verdict::Returned(reason) => Err(PublishError::unroutable(format!(
                "no queue took the message: {target} at rabbitmq {address} leads to none ({reason})"
            ))),
            Verdict::Refused => Err(PublishError::unavailable(format!(
                "rabbitmq {address} did not keep the message for {target} (nack): a full queue, or a node is gone"
            ))),
        };
        self.finish(outcome);
    }
}

impl Matches for Job {
    fn matches(&self, returned: &BasicReturnMessage) -> bool {
        returned.routing_key == self.routing_key
            && returned.exchange == self.exchange
            && returned.properties.message_id() == self.properties.message_id()
            && returned.data == self.payload[..]
    }

    fn matches_fully(&self, returned: &BasicReturnMessage) -> bool {
        returned.properties == self.properties
    }
}
