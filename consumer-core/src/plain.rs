//! Text from messages on its way into a log.

use std::fmt::{self, Write};

/// Whether a character begins a line, is a part of an order to a terminal, or changes how others show.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

/// With such characters escaped.
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(acts) {
            f.write_str(&rest[..at])?;
            let mut chars = rest[at..].chars();
            chars.next().into_iter().flat_map(char::escape_default).try_for_each(|c| f.write_char(c))?;
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}
