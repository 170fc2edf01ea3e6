//! Publishing with patience.

use std::time::Duration;

use consumer_core::{DynPublisher, Outgoing, PublishError, Publisher};
use tokio::time::{Instant, sleep};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Publishes until it is confirmed; a broker that is away is waited for as long as `patience`. Publishing again what may
/// have arrived is safe: it is the same message.
pub(crate) async fn publish(
    publisher: &DynPublisher,
    outgoing: Outgoing,
    patience: Duration,
) -> Result<(), PublishError> {
    let give_up = Instant::now() + patience;
    let mut wait = FIRST_WAIT;
    loop {
        match publisher.publish(outgoing.clone()).await {
            Err(error) if error.is_transient() && Instant::now() + wait < give_up => {
                tracing::warn!(%error, target_name = outgoing.target(), "not published yet: trying again");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            answer => return answer,
        }
    }
}
