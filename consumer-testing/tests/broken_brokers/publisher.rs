//! A publisher with a fault.

use std::{
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use consumer_core::{Headers, Message, Outgoing, PublishError, Publisher, memory::MemoryPublisher};

use crate::{Fault, Shared};

#[derive(Debug, Clone)]
pub(crate) struct FaultyPublisher {
    inner: MemoryPublisher,
    fault: Fault,
    shared: Shared,
    published: Arc<AtomicUsize>,
    in_flight: Arc<()>,
    /// How many cuts there were when it was made.
    cuts: usize,
}

type Publishing = Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send>>;

impl FaultyPublisher {
    pub(crate) fn new(inner: MemoryPublisher, fault: Fault, shared: Shared) -> Self {
        let cuts = shared.cuts.load(Ordering::Relaxed);
        Self { inner, fault, shared, published: Arc::default(), in_flight: Arc::default(), cuts }
    }

    fn start(&self, outgoing: Outgoing) -> Publishing {
        let cuts = self.shared.cuts.load(Ordering::Relaxed);
        let was_cut = cuts > self.cuts;
        let nth = self.published.fetch_add(1, Ordering::Relaxed) + 1;
        match self.fault {
            Fault::ConfirmsUnsent if nth.is_multiple_of(10) => Box::pin(async { Ok(()) }),
            Fault::WaitsForWhatIsHeld if self.shared.held.load(Ordering::Relaxed) > 0 => Box::pin(pending()),
            Fault::HangsAfterCut if was_cut => Box::pin(pending()),
            Fault::RefusesAfterCut if was_cut => {
                Box::pin(async { Err(PublishError::refused("the connection was cut")) })
            }
            Fault::StaysAwayAfterCut if was_cut => {
                Box::pin(async { Err(PublishError::unavailable("the connection was cut")) })
            }
            Fault::RefusesMany if Arc::strong_count(&self.in_flight) > 100 => {
                Box::pin(async { Err(PublishError::refused("too many are in flight")) })
            }
            Fault::RefusesMany => {
                let (place, publishing) = (self.in_flight.clone(), self.inner.publish(outgoing));
                Box::pin(async move {
                    let _place = place;
                    publishing.await
                })
            }
            Fault::ConfirmsWhatACutLost => {
                let this = self.clone();
                Box::pin(async move {
                    match this.shared.cuts.load(Ordering::Relaxed) == cuts {
                        true => this.inner.publish(outgoing).await,
                        false => Ok(()),
                    }
                })
            }
            Fault::PublishesWhenPolled => {
                let inner = self.inner.clone();
                Box::pin(async move { inner.publish(outgoing).await })
            }
            Fault::ConfirmsToNowhere => {
                let publishing = self.inner.publish(outgoing);
                Box::pin(async move { publishing.await.or(Ok(())) })
            }
            fault => Box::pin(self.inner.publish(changed(fault, outgoing))),
        }
    }
}

impl Publisher for FaultyPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        self.start(outgoing)
    }
}

/// What such a publisher makes of a message.
fn changed(fault: Fault, outgoing: Outgoing) -> Outgoing {
    let message = outgoing.message();
    let mut payload = (!message.is_tombstone()).then(|| message.payload().clone());
    let mut key = message.key().cloned();
    let mut headers = outgoing.headers();
    let mut due = outgoing.due();
    match fault {
        Fault::IgnoresNotBefore => due = None,
        Fault::DropsKeys => key = None,
        Fault::EmptyIsNull => payload = payload.filter(|payload| !payload.is_empty()),
        Fault::NullIsEmpty => payload = Some(payload.unwrap_or_default()),
        Fault::CutsLongPayloads => {
            payload = payload.map(|payload| payload.slice(..payload.len().min(1 << 16)))
        }
        Fault::TextHeadersOnly => {
            let text = |value: &Bytes| Bytes::from(String::from_utf8_lossy(value).into_owned());
            headers = rebuilt(headers.iter().map(|(name, value)| (name.to_owned(), value.map(text))));
        }
        Fault::SortsHeaders => {
            let mut sorted: Vec<_> =
                headers.iter().map(|(name, value)| (name.to_owned(), value.cloned())).collect();
            sorted.sort();
            headers = rebuilt(sorted);
        }
        Fault::KeepsWhatIsRemoved => {
            headers = message.headers().clone();
            headers.replace_with(outgoing.changes());
        }
        Fault::GivesNoId => drop(headers.remove("message-id")),
        Fault::GivesCopiesAnId => headers.insert("message-id", "made-up"),
        _ => return outgoing,
    }
    let mut builder = Message::builder().headers(headers);
    if let Some(payload) = payload {
        builder = builder.payload(payload);
    }
    if let Some(key) = key {
        builder = builder.key(key);
    }
    let changed = Outgoing::copy(outgoing.target(), builder.build());
    match due {
        Some(due) => changed.not_before(due),
        None => changed,
    }
}

fn rebuilt(headers: impl IntoIterator<Item = (String, Option<Bytes>)>) -> Headers {
    let mut rebuilt = Headers::new();
    for (name, value) in headers {
        match value {
            Some(value) => rebuilt.append(name, value),
            None => rebuilt.append_null(name),
        }
    }
    rebuilt
}
