//! How many dead letters there are of which kind.

use std::{collections::HashMap, time::SystemTime};

use consumer_core::dead_letters::DeadLetter;

/// Groups beyond so many are counted together: errors may have a number in each.
const GROUPS: usize = 10_000;

/// Counts dead letters by reason, error and consumer, in bounded memory.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    groups: HashMap<(String, String, String), Counted>,
    total: u64,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    count: u64,
    first: Option<SystemTime>,
    last: Option<SystemTime>,
}

/// Dead letters of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Why they were set aside.
    pub reason: String,
    /// The error, its digits as `#`; `(further errors)` for what came after the 10,000th kind.
    pub error: String,
    /// The consumer that set them aside.
    pub consumer: String,
    /// How many there are.
    pub count: u64,
    /// When the first of them failed.
    pub first: Option<SystemTime>,
    /// When the last of them failed.
    pub last: Option<SystemTime>,
}

impl Stats {
    /// Counts one.
    pub fn add(&mut self, letter: &DeadLetter) {
        self.total += 1;
        let at = letter.last_failed_at();
        let mut kind = (
            cut(letter.reason()),
            letter.error().map(|error| shape(&error)).unwrap_or_default(),
            cut(letter.consumer().unwrap_or_default()),
        );
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&kind) {
            kind = ("(further)".to_owned(), "(further errors)".to_owned(), String::new());
        }
        let counted = self.groups.entry(kind).or_insert(Counted { count: 0, first: at, last: at });
        counted.count += 1;
        counted.first = counted.first.into_iter().chain(at).min();
        counted.last = counted.last.max(at);
    }

    /// How many there are in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The groups, the largest first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self
            .groups
            .iter()
            .map(|((reason, error, consumer), counted)| Group {
                reason: reason.clone(),
                error: error.clone(),
                consumer: consumer.clone(),
                count: counted.count,
                first: counted.first,
                last: counted.last,
            })
            .collect();
        groups.sort_by(|a, b| {
            b.count.cmp(&a.count).then_with(|| (&a.reason, &a.error).cmp(&(&b.reason, &b.error)))
        });
        groups
    }
}

/// Labels come over the network: of a longer text the beginning is kept, or 10,000 groups would take what they like.
const LONGEST: usize = 200;

fn cut(text: &str) -> String {
    if text.len() <= LONGEST {
        text.to_owned()
    } else {
        format!("{}…", &text[..text.floor_char_boundary(LONGEST)])
    }
}

/// The same error for another order is the same error: runs of digits become one `#`. Cut, since it is a label.
fn shape(error: &str) -> String {
    let mut shape = String::with_capacity(error.len().min(LONGEST));
    for c in error.chars() {
        match c {
            '0'..='9' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            c => shape.push(c),
        }
        if shape.len() >= LONGEST {
            shape.push('…');
            break;
        }
    }
    shape
}

#[cfg(test)]
mod unit {
    use consumer_core::{
        Message,
        dead_letters::{DeadLetter, Place},
    };

    use super::{Stats, shape};

    /// Anybody can write a dead letter.
    #[test]
    fn of_long_texts_the_beginning_is_kept() {
        let long = "é".repeat(100_000);
        let mut message = Message::builder();
        for name in ["dead-letter-reason", "dead-letter-error", "dead-letter-consumer"] {
            message = message.header(name, long.clone());
        }
        let mut stats = Stats::default();
        stats.add(&DeadLetter::new(Place { scope: 0, seq: 0 }, message.build()));
        let group = stats.groups().remove(0);
        for text in [group.reason, group.error, group.consumer] {
            assert!(text.len() < 210 && text.ends_with('…'), "{}", text.len());
        }
    }

    #[test]
    fn numbers_do_not_tell_errors_apart() {
        assert_eq!(shape("order 17 of 2026-11-25"), "order # of #-#-#");
        assert_eq!(shape(""), "");
        assert!(shape(&"é".repeat(1000)).chars().count() <= 101);
    }
}
