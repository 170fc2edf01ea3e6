//! Messages made beforehand, and a source that hands them over.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use consumer_core::{Delivery, Event, Message, Origin, Settlement, Source, SourceError, Tag};

const PARTITIONS: u32 = 4;
/// What one round of the runtime takes at once from a broker's client.
const BATCH: usize = 64;

/// Messages of 256 bytes, as a broker's client would make them, each with an id of its own.
pub(super) fn messages(numbers: Range<usize>) -> Vec<Message> {
    let payload = Bytes::from(vec![b'x'; 256]);
    let topic: Arc<str> = "orders".into();
    numbers
        .map(|n| {
            let n = n as u64;
            let partition = (n % u64::from(PARTITIONS)) as u32;
            let origin = Origin::Log { system: "memory", topic: topic.clone(), partition, offset: n };
            Message::builder()
                .payload(payload.clone())
                .key(format!("o-{n}"))
                .id(format!("{:032x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
                .origin(origin)
                .build()
        })
        .collect()
}

/// Delivers messages in their order and ends.
#[derive(Debug)]
pub(super) struct Replay(std::vec::IntoIter<Message>);

impl Replay {
    pub(super) fn new(messages: Vec<Message>) -> Self {
        Self(messages.into_iter())
    }
}

impl Source for Replay {
    fn poll_event(
        &mut self,
        _: &mut Context<'_>,
        room: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Event, SourceError>> {
        if self.0.len() == 0 {
            return Poll::Ready(Ok(Event::End));
        }
        if room == 0 {
            return Poll::Pending;
        }
        for message in self.0.by_ref().take(room.min(BATCH)) {
            let Origin::Log { partition, offset, .. } = *message.origin() else { continue };
            out.push(Delivery { tag: Tag { scope: u64::from(partition), seq: offset }, message });
        }
        Poll::Ready(Ok(Event::Delivered))
    }

    fn settle(&mut self, _: Tag, _: Settlement) {}

    fn release(&mut self, _: u64) {}

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        Poll::Ready(Ok(()))
    }
}
