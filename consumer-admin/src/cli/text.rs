//! Text from the network on its way to a terminal.

use std::borrow::Cow;

use consumer_admin::terminal::acts;

/// Escapes what would act on a terminal: control characters, and marks that turn the direction of writing.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return text.into();
    }
    text.chars()
        .fold(String::with_capacity(text.len() + 8), |mut plain, c| {
            if acts(c) {
                plain.extend(c.escape_default());
            } else {
                plain.push(c);
            }
            plain
        })
        .into()
}

/// At most so many characters, the cut marked.
pub(crate) fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        None => text.into(),
        Some(_) => {
            let kept: String = text.chars().take(longest.saturating_sub(1)).collect();
            format!("{kept}…").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(plain("\u{1b}[31mred\u{7}\r\n"), "\\u{1b}[31mred\\u{7}\\r\\n");
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(plain("größe: 3 €"), "größe: 3 €");
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc…".into(), "abcd".into()));
    }
}
