//! Dead letters in a queue, from the operator's side.
//!
//! A queue can be read only by consuming it. So a reader takes the messages without acking them, as many as are there, and
//! gives them back at the end. Whatever dies meanwhile, the broker has them; what that disturbs is their order.

mod death;
mod letters;

use async_trait::async_trait;
use consumer_core::dead_letters::{DeadLetters, DeadLettersError, Letters};

pub(crate) use self::death::DEATHS;
#[cfg(test)]
pub(crate) use self::death::latest as latest_death;
use self::letters::AmqpLetters;
use crate::{
    connection::{Connection, leave},
    declare,
    error::AmqpError,
    topology::check_name,
};

/// The dead letters in a queue. Made by [`AmqpAdmin::dead_letters`](crate::AmqpAdmin::dead_letters).
///
/// # What it guarantees
/// - A message is removed only if it is settled. What is not goes back to the queue: at the end, and when this process dies
///   or the connection breaks.
/// - Reading holds the messages at the broker: consumers with a prefetch of 2,000 are opened one after another. Here no more
///   is kept of each than its number, and at most 2,000 messages wait to be read.
/// - A queue is left in the order in which it was, quorum or classic. A quorum queue puts what is given back behind what was
///   given back before, so a reading that ends early takes the rest at its [close](Letters::close) before any goes back.
///
/// # What it does not
/// - While it is read, **other readers of the queue get nothing**, and what they hold is not shown.
/// - An ack is not confirmed by RabbitMQ. [`settle`](Letters::settle) is done when the ack is on the connection,
///   [`close`](Letters::close) when the broker has taken all of them. If the process dies or the connection breaks before, the
///   letters settled in the last moment come again.
/// - Each reading counts as a delivery in a quorum queue, and **what reaches a delivery limit is given up by the broker**.
///   [`Queue::dead_letters`](crate::Queue::dead_letters) has none that is ever reached; of a limit in the queue's arguments, and
///   of an argument that is missing (RabbitMQ 4 then has a limit of 20), [`notice`](Letters::notice) tells. A policy may set a
///   lower one, which AMQP does not show.
/// - What is held for longer than the broker's `consumer_timeout`, 30 min by default, costs the channel: reading ends with an
///   error, and everything not settled is back in the queue.
/// - If the connection breaks, letters beyond 64,000 come back in an order of the broker's choice; so does everything while
///   another consumer takes some.
#[derive(Debug, Clone)]
pub struct AmqpDeadLetters {
    connection: Connection,
    queue: String,
}

impl AmqpDeadLetters {
    pub(crate) fn new(connection: Connection, queue: String) -> Self {
        Self { connection, queue }
    }
}

#[async_trait]
impl DeadLetters for AmqpDeadLetters {
    async fn open(&self) -> Result<Box<dyn Letters>, DeadLettersError> {
        check_name("queue", &self.queue)?;
        let connection = self.connection.connect("dead-letters").await?;
        let (ready, limit) = match look(&connection, &self.queue).await {
            Ok(Some(found)) => found,
            nothing => {
                leave(connection).await;
                let (queue, address) = (&self.queue, self.connection.address());
                return Err(nothing.err().map_or_else(
                    || {
                        DeadLettersError::missing(format!(
                            "there is no queue `{queue}` at rabbitmq {address}"
                        ))
                    },
                    Into::into,
                ));
            }
        };
        let notice = notice(&self.queue, limit);
        Ok(Box::new(AmqpLetters::open(connection, &self.queue, ready, notice).await?))
    }
}

/// A limit on deliveries, as far as the queue's arguments tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// Ours, or that of a queue which has none: nothing to say about it.
    Unreached,
    Set(i64),
    /// RabbitMQ 4 then has one of 20.
    Unset,
}

/// How many messages are ready, and the limit on their deliveries; `None` where there is no such queue.
async fn look(connection: &lapin::Connection, queue: &str) -> Result<Option<(u64, Limit)>, AmqpError> {
    let Some(ready) = declare::depth(connection, queue).await? else { return Ok(None) };
    let limit = match declare::delivery_limit(connection, queue).await {
        Some(Some(limit)) => Limit::Set(limit),
        Some(None) => Limit::Unset,
        None => Limit::Unreached,
    };
    Ok(Some((ready, limit)))
}

fn notice(queue: &str, limit: Limit) -> String {
    let shut_out = format!("while the queue `{queue}` is read, its other readers get nothing");
    match limit {
        Limit::Unreached => shut_out,
        Limit::Set(..0) => format!(
            "{shut_out}; it has a negative delivery limit, which is none for RabbitMQ 4: RabbitMQ 3 drops what was read once"
        ),
        Limit::Set(limit) => format!(
            "{shut_out}; it has a delivery limit of {limit}, and each reading counts: what reaches it is given up by the broker"
        ),
        Limit::Unset => format!(
            "{shut_out}; it was declared without a delivery limit: RabbitMQ 4 then gives up what was delivered 20 times, and each \
             reading counts"
        ),
    }
}

impl From<AmqpError> for DeadLettersError {
    fn from(error: AmqpError) -> Self {
        let (missing, transient) = (error.is_missing(), error.is_unreachable());
        let (message, source) = error.into_parts();
        let new = if missing {
            Self::missing(message)
        } else if transient {
            Self::unavailable(message)
        } else {
            Self::new(message)
        };
        match source {
            Some(source) => new.with_source(source),
            None => new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_a_reading_costs() {
        assert!(!notice("q", Limit::Unreached).contains("limit"));
        assert!(notice("q", Limit::Set(7)).contains("limit of 7"));
        assert!(notice("q", Limit::Set(-1)).contains("RabbitMQ 3 drops"));
        assert!(notice("q", Limit::Unset).contains("without a delivery limit"));
    }
}
