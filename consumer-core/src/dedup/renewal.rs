//! One task prolongs all claims of a process, in batches.
//!
//! A claim is due when half of its lease is used up. A renewal that gets no answer is tried again until the deadline
//! of the claim: an error is not "lost". At the deadline the handler is cancelled, because a client that is cut off
//! has to stop by itself.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{registry::Registry, store::DedupStore};
use crate::{
    failure::chain,
    sync::{self, sleep_until},
};

pub(super) fn spawn(registry: &Arc<Registry>, lease: Duration) {
    let task = Renewal { registry: Arc::downgrade(registry), lease };
    sync::spawn(task.run());
}

struct Renewal {
    registry: Weak<Registry>,
    lease: Duration,
}

impl Renewal {
    async fn run(self) {
        let Some(wake) = self.registry.upgrade().map(|registry| registry.wake_renewer.clone()) else {
            return;
        };
        loop {
            let Some(registry) = self.registry.upgrade() else { return };
            let sent = sync::now();
            registry.expire(sent);
            let (requests, first) = registry.due(sent + self.lease / 2);
            let Some(first) = first else {
                drop(registry);
                wake.notified().await;
                continue;
            };
            if requests.is_empty() {
                drop(registry);
                sleep_until(first - self.lease * 9 / 20).await;
                continue;
            }
            // A claim that travels in a failure may be past its deadline.
            let first = first.max(sent + self.lease / 20);
            let answer = registry.store.renew(requests.clone());
            tokio::select! {
                answer = answer => match answer {
                    Ok(replies) => registry.renewed(&requests, &replies, sent),
                    Err(error) => {
                        tracing::warn!(claims = requests.len(), error = %chain(&error), "claims could not be renewed yet");
                        let again = sync::now() + self.lease / 20;
                        sleep_until(again.min(first)).await;
                    }
                },
                () = sleep_until(first) => {}
            }
        }
    }
}

/// When its runtime ends, the next claim starts another task.
impl Drop for Renewal {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.renewer_ended();
        }
    }
}
