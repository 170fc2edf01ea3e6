//! A letter or a row in full, for people.

use std::fmt::Write;

use consumer_admin::OutboxMessage;
use consumer_core::{Headers, dead_letters::DeadLetter, message::wire};

use super::text::plain;

/// Bytes of a payload or header that is no text, shown as hex.
const HEX: usize = 4096;

pub(crate) fn letter(letter: &DeadLetter) -> String {
    let mut out = String::new();
    let message = letter.message();
    let _ = writeln!(out, "place    {}", letter.place());
    let _ = writeln!(out, "reason   {}", plain(letter.reason()));
    let _ = writeln!(out, "origin   {}", plain(letter.origin().unwrap_or("-")));
    let _ = writeln!(out, "id       {}", plain(letter.id().as_deref().unwrap_or("-")));
    let _ = writeln!(out, "key      {}", message.key().map_or_else(|| "-".to_owned(), |key| value(key)));
    let _ = writeln!(out, "error    {}", plain(letter.error().as_deref().unwrap_or("-")));
    headers(&mut out, message.headers());
    body(&mut out, (!message.is_tombstone()).then(|| &message.payload()[..]));
    out
}

/// A row of an outbox in full.
pub(crate) fn outbox_message(message: &OutboxMessage) -> String {
    let mut out = String::new();
    let row = &message.row;
    let _ = writeln!(out, "row      {}", row.id);
    let _ = writeln!(out, "state    {}", row.state);
    let _ = writeln!(out, "to       {}", plain(&row.destination));
    let _ = writeln!(out, "id       {}", plain(&row.message_id));
    let _ = writeln!(out, "key      {}", row.key.as_ref().map_or_else(|| "-".to_owned(), |key| value(key)));
    let _ = writeln!(out, "written  {}", wire::format_time(row.created_at));
    let _ = writeln!(out, "attempts {}", row.attempts);
    if let Some(due) = row.due_at {
        let _ = writeln!(out, "due      {}", wire::format_time(due));
    }
    if let Some(at) = row.published_at {
        let _ = writeln!(out, "sent     {}", wire::format_time(at));
    }
    let _ = writeln!(out, "error    {}", plain(row.error.as_deref().unwrap_or("-")));
    match message.read_headers() {
        Ok(all) => headers(&mut out, &all),
        Err(error) => {
            let _ = writeln!(out, "headers  {}\n  {}", plain(&error), plain(&message.headers));
        }
    }
    body(&mut out, message.payload.as_deref());
    out
}

fn headers(out: &mut String, headers: &Headers) {
    let _ = writeln!(out, "headers");
    for (name, header) in headers.iter() {
        let _ =
            writeln!(out, "  {}: {}", plain(name), header.map_or_else(|| "(null)".to_owned(), |v| value(v)));
    }
}

fn body(out: &mut String, bytes: Option<&[u8]>) {
    let _ = match bytes {
        None => writeln!(out, "payload  none (a tombstone)"),
        Some(bytes) => writeln!(out, "payload  {} bytes\n{}", bytes.len(), payload(bytes)),
    };
}

fn value(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| hex(bytes), |text| plain(text).into_owned())
}

/// JSON is laid out, other text is shown as it is, anything else in hex.
fn payload(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return hex(bytes) };
    let json = serde_json::from_str::<serde_json::Value>(text).ok();
    // Large numbers and double names do not survive: then it is shown as it is.
    let survives = |value: &serde_json::Value| {
        let written = value.to_string();
        written == squeezed(text)
    };
    match json.filter(survives).and_then(|value| serde_json::to_string_pretty(&value).ok()) {
        Some(pretty) => lines(&pretty),
        None => lines(text),
    }
}

/// JSON without the white space between its parts.
fn squeezed(json: &str) -> String {
    let (mut is_text, mut is_escaped) = (false, false);
    let part = |c: &char| {
        let keep = is_text || !c.is_ascii_whitespace();
        (is_text, is_escaped) = match c {
            '"' if !is_escaped => (!is_text, false),
            '\\' if is_text && !is_escaped => (true, true),
            _ => (is_text, false),
        };
        keep
    };
    json.chars().filter(part).collect()
}

fn lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (index, row) in bytes[..bytes.len().min(HEX)].chunks(16).enumerate() {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = row.iter().map(|b| if b.is_ascii_graphic() { *b as char } else { '.' }).collect();
        let _ = write!(
            out,
            "{}{:08x}  {:<47}  {text}",
            if index == 0 { "" } else { "\n" },
            index * 16,
            hex.join(" ")
        );
    }
    if bytes.len() > HEX {
        let _ = write!(out, "\n… {} bytes more", bytes.len() - HEX);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_text_is_plain_and_the_rest_is_hex() {
        assert_eq!(payload(br#"{"b":1,"a":"x"}"#), "{\n  \"b\": 1,\n  \"a\": \"x\"\n}");
        let odd = r#"{"n":123456789012345678901234567890,"n":1}"#;
        assert_eq!(payload(odd.as_bytes()), odd, "what would not survive is not laid out");
        assert_eq!(payload(br#"{ "a b" : "c \" d" }"#), "{\n  \"a b\": \"c \\\" d\"\n}");
        assert_eq!(payload("two\nlines\u{1b}".as_bytes()), "two\nlines\\u{1b}");
        assert!(payload(&[0xff, b'a']).starts_with("00000000  ff 61"));
        assert!(payload(&[0xff; 5000]).ends_with("… 904 bytes more"));
    }

    #[test]
    fn no_part_of_a_letter_acts_on_the_terminal() {
        use consumer_core::{
            Message,
            dead_letters::{BrokerDeath, Place},
        };
        let hostile = "\u{1b}[2J\u{1b}]0;x\u{7}\r\nforged\u{9b}1m\u{202e}\0{}";
        let mut message = Message::builder().key(hostile).payload(format!("{{\"a\": \"{hostile}\"}}"));
        for name in [wire::MESSAGE_ID, wire::TRACEPARENT, hostile] {
            message = message.header(name, hostile);
        }
        let reasons = [
            wire::DEAD_LETTER_REASON,
            wire::DEAD_LETTER_ERROR,
            wire::DEAD_LETTER_CONSUMER,
            wire::DEAD_LETTER_DROPPED,
        ];
        for name in reasons {
            message = message.header(name, hostile);
        }
        let place = Place { scope: 0, seq: 1 };
        let with_headers = DeadLetter::new(place, message.build());
        let death = BrokerDeath::new(hostile, hostile);
        let by_broker =
            DeadLetter::new(place, Message::builder().payload(hostile).build()).with_death(Some(death));
        for one in [&with_headers, &by_broker] {
            let mut stats = consumer_admin::Stats::default();
            stats.add(one);
            let mut exported = Vec::new();
            consumer_admin::ExportedLetter::new(one).write_to(&mut exported).unwrap();
            let json = consumer_admin::terminal::json(super::super::json::letter(one).to_string());
            let shown = [
                letter(one),
                super::super::table::list_row(one),
                super::super::table::stats(&stats),
                String::from_utf8(exported).unwrap(),
                json,
            ];
            for text in shown {
                let acting = text.chars().find(|c| *c != '\n' && consumer_admin::terminal::acts(*c));
                assert_eq!(acting, None, "{text:?}");
                assert!(
                    !text.lines().any(|line| line.starts_with("forged") && !text.contains("payload")),
                    "{text}"
                );
            }
        }
    }
}
