//! The way of a message in a run with an order.

use std::{sync::Arc, time::Duration};

use tower::Service;

use super::{
    Parking,
    parking::{Entered, Seat},
    policy::{self, Parked},
    service::{Shared, Unpublished, target_of},
};
use crate::{BoxError, Failure, Headers, Message, Outcome, Publisher, runtime::Ordering};

impl<P: Publisher> Shared<P> {
    /// Why a run with this order must not have this layer.
    pub(super) fn refusal(&self, ordering: Ordering) -> Option<&'static str> {
        if self.config.delays.is_empty() {
            return None;
        }
        match ordering {
            Ordering::Partition => Some(
                "delayed retry and `ordering(Partition)` exclude each other: later messages pass the one that waits",
            ),
            Ordering::Key if self.config.parking.is_none() => Some(
                "delayed retry with `ordering(Key)` needs a parking policy, or later messages pass the one that waits: \
                 name one by `DelayedRetryLayer::parking`",
            ),
            Ordering::Key | Ordering::None => None,
        }
    }

    /// None where nothing has to wait for this message.
    pub(super) fn seat(&self, message: &Message) -> Option<(Parking, Seat)> {
        let parking = self.config.parking.as_ref()?;
        let longest = self.config.delays.last().copied().unwrap_or_default();
        if ordering_of(message) != Ordering::Key {
            return None;
        }
        target_of(message.origin())?;
        Some((parking.clone(), parking.seat(message, longest)?))
    }

    /// Handles a message when its turn has come; until then it is parked at the broker.
    pub(super) async fn in_turn<S>(
        self: Arc<Self>,
        mut inner: S,
        message: Message,
        parking: Parking,
        seat: Seat,
    ) -> Result<Outcome, Failure>
    where
        S: Service<Message, Response: Into<Outcome>, Error: Into<BoxError>>,
    {
        let (is_first, message) = if self.config.delays.is_empty() {
            // Switched off while messages wait, or other members have delays: nothing is parked here, and what was gives its
            // place up.
            (true, message)
        } else {
            match parking.enter(&seat, &message).await? {
                Entered::Free => (false, message),
                Entered::First => (true, message),
                Entered::Behind(remaining) => return self.park(message, parking, seat, remaining).await,
                Entered::Full(unparked) => (false, message.with_extension(unparked)),
            }
        };
        let answer = inner.call(message.clone()).await.map(Into::into).map_err(Failure::from_error);
        let mut failure = match answer {
            Ok(outcome) => {
                // What supersedes it is a copy of itself, which still has its place. A message that found its key free
                // has none: whoever has given it one since then has it as a delivery of its own.
                if is_first && !matches!(outcome, Outcome::Superseded | Outcome::Deferred) {
                    seat.leave(&message).await?;
                }
                return Ok(outcome);
            }
            Err(failure) => failure.or_handed_back(message.is_cancelled()),
        };
        match self.next(&message, &failure) {
            Some(next) => self.defer(message, failure, next, Some(seat)).await,
            None if self.is_put_off(&message, &failure) => self.put_off(message, failure, Some(seat)).await,
            None => {
                // It keeps its place until it is set aside.
                if is_first {
                    failure.set_seat(seat);
                }
                Err(failure)
            }
        }
    }

    /// The list of the key has the message already: now it waits at the broker.
    async fn park(
        self: Arc<Self>,
        message: Message,
        parking: Parking,
        seat: Seat,
        remaining: Duration,
    ) -> Result<Outcome, Failure> {
        let origin = message.origin();
        let parked = policy::parked(&self.config.delays, remaining, self.config.clock.now());
        let copy = parked.and_then(|Parked { delay, wait }| {
            self.copy(&message, Headers::with_capacity(6), delay, wait).map(|copy| (copy, wait))
        });
        let published = match copy {
            Some((copy, wait)) => self.publish(&copy, &message).await.map(|()| wait),
            None => Err(Unpublished::Refused),
        };
        match published {
            Ok(wait) => {
                tracing::debug!(%origin, ?wait, "message is parked: an earlier one of its key waits for its retry");
                Ok(Outcome::Deferred)
            }
            Err(Unpublished::HandedBack) => {
                Err(Failure::cancelled("handed back while its parked copy waited for the broker"))
            }
            Err(Unpublished::Refused) => {
                let mut failure =
                    parking.unhandled(&message, "the broker refuses to park the message".into());
                failure.set_seat(seat);
                Err(failure)
            }
        }
    }
}

/// Ends the run, which would pass over what it promises. A stack that is polled in other tasks learns of its run here.
pub(super) async fn refuse(message: Message, why: &'static str) -> Result<Outcome, Failure> {
    if let Some(scope) = message.scope() {
        scope.run().refuse(why);
    }
    message.cancellation().cancelled().await;
    Err(Failure::cancelled(why))
}

/// What the run of the message promises.
pub(super) fn ordering_of(message: &Message) -> Ordering {
    message.scope().map_or(Ordering::None, |scope| scope.run().ordering())
}
