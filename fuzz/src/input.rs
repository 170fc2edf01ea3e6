//! Inputs: samples with something wrong with them, and now and then plain noise.

use proptest::{collection::vec, prelude::*, sample::Index};

/// What has broken parsers before.
const WORDS: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "+1",
    "00",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1e999",
    "-0",
    "0.1",
    "NaN",
    "inf",
    " ",
    "\t",
    "\r\n",
    "\0",
    "é",
    "\u{202e}",
    "\u{feff}",
    "🦀",
    "%",
    "%2",
    "%00",
    "%zz",
    "%+1",
    "%ff",
    "%C3%A9",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    "/",
    "//",
    "://",
    ":",
    "@",
    "@@",
    ",",
    ";",
    "?",
    "#",
    "=",
    "&",
    "[",
    "]",
    "{",
    "}",
    "[[[[[[[[",
    "{\"a\":",
    "null",
    "true",
    "9999-12-31T23:59:59.999Z",
    "0000-00-00T00:00:00Z",
];
/// No mutation makes an input longer than this.
const LONGEST: usize = 16 * 1024;

/// Bytes: one of `samples` with up to eight mutations, which know the `words`, or noise.
pub fn bytes(
    samples: &'static [&'static str],
    words: &'static [&'static str],
) -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<_> = samples.iter().map(|sample| sample.as_bytes().to_vec()).collect();
    prop_oneof![9 => mutated(samples, words), 1 => vec(any::<u8>(), 0..300)]
}

/// The same as text; what is not UTF-8 becomes the replacement character.
pub fn text(
    samples: &'static [&'static str],
    words: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let noise = vec(any::<char>(), 0..100).prop_map(|chars| chars.into_iter().collect());
    let mutated = bytes(samples, words).prop_map(|bytes| match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    });
    prop_oneof![9 => mutated, 1 => noise]
}

/// One of `samples` with up to eight mutations.
pub fn mutated(samples: Vec<Vec<u8>>, words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (any::<Index>(), vec(mutation(), 0..8)).prop_map(move |(sample, mutations)| {
        let mut bytes = sample.get(&samples).clone();
        for mutation in mutations {
            mutation.apply(&mut bytes, &samples, words);
            bytes.truncate(LONGEST);
        }
        bytes
    })
}

#[derive(Debug, Clone)]
struct Mutation {
    kind: u8,
    at: Index,
    length: usize,
    byte: u8,
    pick: Index,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let length = prop_oneof![4 => 0usize..8, 2 => 0usize..64, 1 => 0usize..2048];
    (0..10_u8, any::<Index>(), length, any::<u8>(), any::<Index>())
        .prop_map(|(kind, at, length, byte, pick)| Mutation { kind, at, length, byte, pick })
}

impl Mutation {
    fn apply(self, bytes: &mut Vec<u8>, samples: &[Vec<u8>], words: &[&str]) {
        let at = self.at.index(bytes.len() + 1);
        let end = (at + self.length).min(bytes.len());
        let word = || {
            let word = self.pick.index(words.len() + WORDS.len());
            words.get(word).unwrap_or_else(|| &WORDS[word - words.len()]).as_bytes()
        };
        let put = |bytes: &mut Vec<u8>, range, with: &[u8]| {
            bytes.splice(range, with.iter().copied());
        };
        match self.kind {
            0 => put(bytes, at..end.min(at + 1), &[self.byte]),
            1 => put(bytes, at..end, &[]),
            2 => put(bytes, at..at, word()),
            3 => put(bytes, at..end, word()),
            4 => bytes.truncate(at),
            5 => put(bytes, at..at, &vec![self.byte; self.length]),
            6 => {
                let piece = bytes[at..end].to_vec();
                put(bytes, at..at, &piece);
            }
            // Deep, or long.
            7 => {
                let piece = bytes[at..end.min(at + 16)].repeat(self.length);
                put(bytes, at..at, &piece);
            }
            8 => {
                let other = self.pick.get(samples);
                put(bytes, at..at, &other[at.min(other.len())..end.min(other.len())]);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (self.byte % 8);
                }
            }
        }
    }
}
