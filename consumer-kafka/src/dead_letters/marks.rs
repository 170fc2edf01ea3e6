//! Which letters are settled.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::SystemTime,
};

use consumer_core::{
    Message,
    dead_letters::{Place, Settled},
    message::wire,
};
use serde_json::{Value, json};

/// The timestamp of a letter without one, as in the log.
pub(super) const NO_TIMESTAMP: i64 = -1;

/// The record that settles the letter at `place`, which has this timestamp.
pub(crate) fn mark(place: Place, timestamp: i64, how: Settled, now: SystemTime) -> Message {
    let value = json!({
        "settled": how.as_str(),
        "at": wire::format_time(now),
        "letter_timestamp": timestamp,
    });
    Message::builder().key(place.to_string()).payload(value.to_string()).build()
}

/// The record that takes a mark away.
pub(crate) fn tombstone(place: Place) -> Message {
    Message::builder().key(place.to_string()).build()
}

/// The letters that marks were written for: offset and timestamp.
#[derive(Debug, Default)]
pub(crate) struct Marks(HashMap<u64, BTreeMap<u64, i64>>);

impl Marks {
    /// Reads a record of the settled topic; the last one of a key counts. Whether it was understood: what was not
    /// changes nothing, so that it hides no letter.
    pub(crate) fn read(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> bool {
        let Some(place) = key.and_then(parse_place) else { return false };
        let Some(value) = value else {
            if let Some(partition) = self.0.get_mut(&place.scope) {
                partition.remove(&place.seq);
            }
            return true;
        };
        let Some(timestamp) = parse_value(value) else { return false };
        self.0.entry(place.scope).or_default().insert(place.seq, timestamp);
        true
    }

    /// Whether the letter at `place` is settled, rather than one that was there before it.
    pub(crate) fn hides(&self, place: Place, timestamp: i64) -> bool {
        self.0.get(&place.scope).and_then(|partition| partition.get(&place.seq)) == Some(&timestamp)
    }

    /// The number of marks in a part of a partition.
    pub(super) fn count(&self, partition: u64, offsets: Range<u64>) -> u64 {
        self.0.get(&partition).map_or(0, |marks| marks.range(offsets).count() as u64)
    }

    /// The marks of a partition below an offset.
    pub(super) fn below(&self, partition: u64, offset: u64) -> impl Iterator<Item = Place> {
        let marks = self.0.get(&partition).into_iter().flat_map(move |marks| marks.range(..offset));
        marks.map(move |(seq, _)| Place { scope: partition, seq: *seq })
    }
}

/// As [`Place`] is written: `3@17`.
fn parse_place(key: &[u8]) -> Option<Place> {
    let (scope, seq) = std::str::from_utf8(key).ok()?.split_once('@')?;
    Some(Place { scope: scope.parse().ok()?, seq: seq.parse().ok()? })
}

fn parse_value(value: &[u8]) -> Option<i64> {
    let value: Value = serde_json::from_slice(value).ok()?;
    let how = value.get("settled")?.as_str()?;
    let known = [Settled::Redriven, Settled::Discarded].iter().any(|known| known.as_str() == how);
    value.get("letter_timestamp")?.as_i64().filter(|_| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(scope: u64, seq: u64) -> Place {
        Place { scope, seq }
    }

    fn read(marks: &mut Marks, message: &Message) -> bool {
        let value = (!message.is_tombstone()).then(|| &message.payload()[..]);
        marks.read(message.key().map(|key| &key[..]), value)
    }

    fn settled(place: Place, timestamp: i64) -> Message {
        mark(place, timestamp, Settled::Redriven, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_mark_is_written_as_documented() {
        let mark = mark(at(3, 17), 42, Settled::Discarded, SystemTime::UNIX_EPOCH);
        assert_eq!(mark.key().unwrap()[..], *b"3@17");
        let value: Value = serde_json::from_slice(mark.payload()).unwrap();
        let wanted =
            json!({"settled": "discarded", "at": "1970-01-01T00:00:00.000Z", "letter_timestamp": 42});
        assert_eq!(value, wanted);
    }

    #[test]
    fn a_mark_hides_the_letter_it_was_written_for() {
        let mut marks = Marks::default();
        assert!(read(&mut marks, &settled(at(0, 7), 100)));
        assert!(marks.hides(at(0, 7), 100));
        assert!(!marks.hides(at(0, 7), 101), "another letter at the same place");
        assert!(!marks.hides(at(1, 7), 100) && !marks.hides(at(0, 8), 100));
        assert!(read(&mut marks, &settled(at(0, 8), NO_TIMESTAMP)));
        assert!(marks.hides(at(0, 8), NO_TIMESTAMP));
    }

    #[test]
    fn the_last_record_of_a_key_counts() {
        let mut marks = Marks::default();
        read(&mut marks, &settled(at(0, 7), 100));
        read(&mut marks, &settled(at(0, 7), 200));
        assert!(marks.hides(at(0, 7), 200) && !marks.hides(at(0, 7), 100));
        assert!(read(&mut marks, &tombstone(at(0, 7))));
        assert!(!marks.hides(at(0, 7), 200));
        assert!(read(&mut marks, &tombstone(at(5, 7))));
        assert_eq!(marks.count(0, 0..100), 0);
    }

    #[test]
    fn what_is_not_understood_hides_nothing() {
        let mut marks = Marks::default();
        let good = settled(at(0, 7), 1).payload().clone();
        for key in
            [None, Some(&b""[..]), Some(b"7"), Some(b"0@"), Some(b"0@-7"), Some(b"x@7"), Some(b"\xff@7")]
        {
            assert!(!marks.read(key, Some(&good)), "{key:?}");
        }
        for value in [
            "",
            "redriven",
            "{}",
            "[]",
            r#"{"settled":"redriven"}"#,
            r#"{"settled":"redriven","letter_timestamp":"1"}"#,
            r#"{"settled":"kept","letter_timestamp":1}"#,
            r#"{"letter_timestamp":1}"#,
        ] {
            assert!(!marks.read(Some(b"0@7"), Some(value.as_bytes())), "{value}");
        }
        assert!(!marks.hides(at(0, 7), 1));
    }

    #[test]
    fn marks_are_counted_and_found_by_range() {
        let mut marks = Marks::default();
        for seq in [1, 5, 9, 10] {
            read(&mut marks, &settled(at(2, seq), 1));
        }
        assert_eq!(marks.count(2, 5..10), 2);
        assert_eq!(marks.count(0, 0..100), 0);
        assert_eq!(marks.below(2, 9).collect::<Vec<_>>(), [at(2, 1), at(2, 5)]);
        assert_eq!(marks.below(1, 9).count(), 0);
    }
}
