//! What the command line reads, and what it shows of letters that came over the network.

use std::time::{Duration, SystemTime};

use consumer_core::{
    Message,
    dead_letters::{DeadLetter, Place},
};
use fuzz::Target;
use proptest::prelude::*;

use super::{
    args::{duration, place, time},
    json, show, table,
};

#[test]
fn fuzz_admin_values() {
    const SAMPLES: &[&str] = &["30s", "2h 5m", "7d", "2026-11-25T08:00:00Z", "3@17", "1month"];
    Target::new("admin_values").run(fuzz::text(SAMPLES, &["y", "@", "years"]), |meter, text| {
        meter.parse(text.len(), || {
            let texts = [duration(&text).err(), time(&text).err(), place(&text).err()];
            assert!(texts.iter().flatten().all(|why| why.len() < 100));
        });
        if let Ok(place) = place(&text) {
            prop_assert_eq!(super::args::place(&place.to_string()), Ok(place));
        }
        Ok(())
    });
}

/// Whatever is in a letter, it is shown in lines that do nothing to a terminal.
#[test]
fn fuzz_admin_shown() {
    const VALUES: &[&str] = &["card declined", "\u{1b}[31mred\u{7}", "a\r\nb", "größe \u{202e}"];
    let value = || fuzz::bytes(VALUES, &["\u{1b}", "\u{202e}", "\u{200b}"]);
    let name = fuzz::text(&["x-mine", "\u{1b}[2J"], &["\n"]);
    let input = (name, value(), value(), value(), value(), any::<u64>());
    Target::new("admin_shown").at_most(64, 64 * 1024).run(
        input,
        |meter, (name, header, error, payload, key, millis)| {
            let length = name.len() + header.len() + error.len() + payload.len() + key.len();
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let message =
                Message::builder().header(name, header).header("dead-letter-error", error).timestamp(at);
            let letter =
                DeadLetter::new(Place { scope: 0, seq: 1 }, message.payload(payload).key(key).build());
            let row = meter.parse(length, || table::list_row(&letter));
            prop_assert_eq!(row.matches('\n').count(), 1);
            let all = [row, meter.parse(length, || show::letter(&letter))];
            let acts = |c: char| {
                c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c) || c == '\u{200b}'
            };
            prop_assert!(!all.iter().any(|text| text.contains(acts)));
            let line = meter.parse(length, || json::letter(&letter).to_string());
            prop_assert!(!line.contains(|c: char| c < ' '), "what JSON lets no text hold");
            Ok(())
        },
    );
}
