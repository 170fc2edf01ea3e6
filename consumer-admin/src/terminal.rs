//! What came over the network, on its way to a terminal.

/// Whether a character does more than show: control characters, and marks that turn the direction of writing or have no
/// width.
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

/// JSON of one line that means the same and has no such character: the format itself leaves some of them as they are.
pub fn json(line: String) -> String {
    if !line.chars().any(acts) {
        return line;
    }
    line.chars().fold(String::with_capacity(line.len() + 16), |mut plain, c| {
        if acts(c) {
            // They are in strings only, and none of them takes two units in UTF-16.
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nothing_acts_on_the_terminal_and_all_is_still_there() {
        let value = json!({ "a": "\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\n\u{2028}größe", "\u{9b}b": 1 });
        let line = super::json(value.to_string());
        assert!(!line.chars().any(acts), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
