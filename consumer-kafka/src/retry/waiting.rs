//! What waits at the source until it is due: the first messages of one partition of a retry topic.
//!
//! The partition is paused while there is enough of them, so what waits at the broker costs no memory here. They have not
//! been delivered: whoever has the partition next gets them from the broker.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use consumer_core::{Message, message::wire};

use crate::shared::Queued;

/// So many messages, or so many bytes, are enough …
const HIGH: (usize, usize) = (256, 1 << 20);
/// … until it has come down to this. A pause throws away what was fetched ahead, so it is not for single messages.
const LOW: (usize, usize) = (128, 1 << 19);

#[derive(Debug)]
pub(crate) struct Waiting {
    /// Of the topic.
    pub(crate) delay: Duration,
    queue: VecDeque<(Instant, Queued)>,
    bytes: usize,
}

impl Waiting {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay, queue: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, due: Instant, queued: Queued) {
        self.bytes += queued.bytes;
        self.queue.push_back((due, queued));
    }

    /// The first message, once it is due. Those behind it wait for it, due or not: the order is kept.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Queued> {
        self.queue.front().filter(|(due, _)| *due <= now)?;
        let (_, queued) = self.queue.pop_front()?;
        self.bytes -= queued.bytes;
        Some(queued)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= HIGH.0 || self.bytes >= HIGH.1
    }

    pub(crate) fn is_low(&self) -> bool {
        self.queue.len() <= LOW.0 && self.bytes <= LOW.1
    }
}

/// How long a message of a retry topic has to wait from now on.
///
/// Never longer than the delay of the topic: a header that says otherwise, by mistake or from a clock that is ahead,
/// would hold up all messages behind it.
pub(crate) fn wait(message: &Message, delay: Duration, now: SystemTime) -> Duration {
    let said = message.headers().get_str(wire::RETRY_NOT_BEFORE).and_then(|text| wire::parse_time(text).ok());
    let due = said.or_else(|| message.timestamp().and_then(|at| at.checked_add(delay)));
    due.and_then(|due| due.duration_since(now).ok()).unwrap_or_default().min(delay)
}

#[cfg(test)]
mod tests {
    use consumer_core::Tag;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DELAY: Duration = Duration::from_secs(30);

    fn queued(seq: u64, bytes: usize) -> Queued {
        Queued { tag: Tag { scope: 1, seq }, message: Message::new("x"), bytes }
    }

    fn at(second: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + 1_000_000 * SECOND + second * SECOND
    }

    fn waits(header: Option<&str>, timestamp: Option<SystemTime>, now: SystemTime) -> Duration {
        let mut message = Message::builder();
        if let Some(header) = header {
            message = message.header("retry-not-before", header.to_owned());
        }
        if let Some(timestamp) = timestamp {
            message = message.timestamp(timestamp);
        }
        wait(&message.build(), DELAY, now)
    }

    #[test]
    fn the_header_says_when_a_message_is_due() {
        let header = wire::format_time(at(20));
        assert_eq!(waits(Some(&header), Some(at(0)), at(5)), 15 * SECOND);
        assert_eq!(waits(Some(&header), Some(at(0)), at(20)), Duration::ZERO);
        assert_eq!(waits(Some(&header), Some(at(0)), at(99)), Duration::ZERO);
    }

    #[test]
    fn without_a_header_that_can_be_read_it_is_the_time_of_the_record() {
        for header in [None, Some("soon"), Some("")] {
            assert_eq!(waits(header, Some(at(0)), at(10)), 20 * SECOND, "{header:?}");
            assert_eq!(waits(header, Some(at(0)), at(31)), Duration::ZERO);
            assert_eq!(waits(header, None, at(0)), Duration::ZERO, "nothing is known: at once");
        }
    }

    #[test]
    fn no_message_waits_longer_than_its_topic_says() {
        assert_eq!(waits(Some("9999-01-01T00:00:00.000Z"), None, at(0)), DELAY);
        assert_eq!(waits(None, Some(at(4_000_000)), at(0)), DELAY);
    }

    #[test]
    fn the_first_one_holds_up_those_behind_it() {
        let (mut waiting, now) = (Waiting::new(DELAY), Instant::now());
        waiting.push(now + SECOND, queued(0, 1));
        waiting.push(now, queued(1, 1));
        assert!(waiting.pop_due(now).is_none());
        let order: Vec<_> = std::iter::from_fn(|| waiting.pop_due(now + SECOND)).map(|q| q.tag.seq).collect();
        assert_eq!(order, [0, 1]);
    }

    #[test]
    fn messages_and_bytes_are_bounded_with_room_between_full_and_low() {
        let (mut waiting, now) = (Waiting::new(DELAY), Instant::now());
        for n in 0..256 {
            assert!(!waiting.is_full());
            waiting.push(now, queued(n, 10));
        }
        assert!(waiting.is_full() && !waiting.is_low());
        for _ in 0..128 {
            assert!(!waiting.is_low());
            waiting.pop_due(now).unwrap();
        }
        assert!(waiting.is_low());
        waiting.push(now, queued(999, 1 << 20));
        assert!(waiting.is_full());
        while waiting.pop_due(now).is_some() {}
        assert!(waiting.is_low() && waiting.bytes == 0);
    }
}
