//! Publishing for later: by way of a queue in which messages wait.
//!
//! RabbitMQ has no delayed publish without a plugin. But what expires in a queue goes on along its dead-letter route: a queue
//! for each target and delay, with that as its time to live, leads back to the target. The route is at-least-once, so the
//! broker removes a message here when it is there. A message that is due before the delay ends has an expiry of its own,
//! which counts once those in front of it are gone; at the latest it goes on when the delay has ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use consumer_core::{Outgoing, PublishError};
use tokio::sync::Mutex;

use super::Inner;
use crate::{
    connection::leave,
    declare,
    error::{AmqpError, chain},
    topology::{Queue, check_name},
};

/// The queues that are known to be there.
pub(super) type Known = Mutex<HashSet<String>>;

/// Publishes to the queue where it waits, which is declared the first time, and again if it is gone.
pub(super) async fn publish(
    inner: Arc<Inner>,
    outgoing: Outgoing,
    delay: Duration,
) -> Result<(), PublishError> {
    let queue = Queue::waiting(outgoing.target(), delay);
    check_name("queue", queue.name()).map_err(|error| PublishError::unroutable(error.to_string()))?;
    let mut declared = ensure(&inner, &queue).await?;
    loop {
        match inner.publish_to(queue.name(), &outgoing).await {
            Err(error) if error.is_unroutable() && !declared => {
                inner.waiting_queues.lock().await.remove(queue.name());
                declared = ensure(&inner, &queue).await?;
            }
            answer => return answer,
        }
    }
}

/// Whether it was declared now.
async fn ensure(inner: &Inner, queue: &Queue) -> Result<bool, PublishError> {
    // Held while one declares: the others then find it done.
    let mut known = inner.waiting_queues.lock().await;
    if known.contains(queue.name()) {
        return Ok(false);
    }
    match declare_queue(inner, queue).await {
        Ok(()) => {
            known.insert(queue.name().to_owned());
            Ok(true)
        }
        Err(failed) if failed.is_unreachable() => Err(PublishError::unavailable(chain(&failed))),
        Err(failed) => Err(PublishError::refused(chain(&failed))),
    }
}

async fn declare_queue(inner: &Inner, queue: &Queue) -> Result<(), AmqpError> {
    let connection = inner.connection.connect("publisher").await?;
    let declared = declare::alone(&connection, queue).await;
    // Others wait for this queue to be known.
    tokio::spawn(leave(connection));
    declared
}
