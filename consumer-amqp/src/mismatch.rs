//! What the broker says when a queue exists with other properties than those asked for.
//!
//! It names the first that differs: `PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/':
//! received the value 'quorum' of type 'longstr' but current is none`.

use std::fmt;

use lapin::types::{AMQPValue, LongString};

use crate::topology::{
    DEAD_LETTER_EXCHANGE, DEAD_LETTER_ROUTING_KEY, DEAD_LETTER_STRATEGY, OVERFLOW, SINGLE_ACTIVE_CONSUMER,
    TYPE,
};

/// One property, as it was asked for and as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) property: String,
    asked: String,
    current: String,
}

impl Mismatch {
    /// None where the text is about something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (property, rest) = rest.split_once('\'')?;
        // The name of the queue stands before: it may have these words in it.
        let (_, rest) = rest.rsplit_once(": received ")?;
        let (asked, current) = rest.rsplit_once(" but current is ")?;
        Some(Self { property: property.into(), asked: asked.into(), current: current.into() })
    }

    /// Whether messages can be lost or reordered over it, or there is nothing to be done about it later.
    pub(crate) fn is_serious(&self) -> bool {
        matches!(
            &*self.property,
            TYPE | "durable"
                | "auto_delete"
                | DEAD_LETTER_EXCHANGE
                | DEAD_LETTER_ROUTING_KEY
                | DEAD_LETTER_STRATEGY
                | OVERFLOW
        )
    }

    /// Whether messages of one key can reach several consumers at a time, although an order was asked for.
    pub(crate) fn breaks_order(&self) -> bool {
        self.property == SINGLE_ACTIVE_CONSUMER && self.asked.contains("true")
    }

    /// The value that the queue has, to ask with it for the next difference; `Some(None)` for none at all, and `None`
    /// where it is not understood. `asked` is what was asked for.
    pub(crate) fn current(&self, asked: Option<&AMQPValue>) -> Option<Option<AMQPValue>> {
        if self.current == "none" {
            return Some(None);
        }
        let Some(rest) = self.current.strip_prefix("the value '") else {
            // Without a type it is that of what was asked for.
            let value = self.current.strip_prefix('\'')?.strip_suffix('\'')?;
            return Some(Some(match asked? {
                AMQPValue::LongString(_) => AMQPValue::LongString(LongString::from(value)),
                AMQPValue::Boolean(_) => AMQPValue::Boolean(value == "true"),
                _ => AMQPValue::LongLongInt(value.parse().ok()?),
            }));
        };
        let (value, kind) = rest.rsplit_once("' of type '")?;
        let value = match kind.trim_end_matches('\'') {
            "longstr" => AMQPValue::LongString(LongString::from(value)),
            "bool" => AMQPValue::Boolean(value == "true"),
            _ => AMQPValue::LongLongInt(value.parse().ok()?),
        };
        Some(Some(value))
    }

    /// The value of a flag, which is not an argument.
    pub(crate) fn current_flag(&self) -> Option<bool> {
        match &*self.current {
            "'true'" => Some(true),
            "'false'" => Some(false),
            _ => None,
        }
    }
}

/// `x-queue-type` is classic, quorum was asked for.
impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn plain(text: &str) -> &str {
            let text = text.strip_prefix("the value ").unwrap_or(text);
            text.split_once("' of type").map_or(text, |(value, _)| value).trim_matches('\'')
        }
        write!(f, "`{}` is {}, asked for was {}", self.property, plain(&self.current), plain(&self.asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Mismatch {
        Mismatch::parse(&format!("PRECONDITION_FAILED - inequivalent arg {rest}")).unwrap()
    }

    #[test]
    fn both_sides_are_shown() {
        let kind = parse(
            "'x-queue-type' for queue 'q' in vhost '/': received none but current is the value 'quorum' of type 'longstr'",
        );
        assert_eq!(kind.to_string(), "`x-queue-type` is quorum, asked for was none");
        assert!(kind.is_serious());
        assert_eq!(kind.current(None), Some(Some(AMQPValue::LongString("quorum".into()))));
        let durable = parse("'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'");
        assert_eq!(durable.to_string(), "`durable` is false, asked for was true");
        assert_eq!(durable.current_flag(), Some(false));
    }

    #[test]
    fn a_missing_limit_is_not_serious() {
        let limit = parse(
            "'x-delivery-limit' for queue 'q' in vhost '/': received the value '1000' of type 'signedint' but current is none",
        );
        assert!(!limit.is_serious() && !limit.breaks_order());
        assert_eq!(limit.current(None), Some(None));
        let other = parse(
            "'x-delivery-limit' for queue 'q' in vhost '/': received the value '1000' of type 'signedint' but current is the value '5' of type 'long'",
        );
        assert_eq!(other.current(None), Some(Some(AMQPValue::LongLongInt(5))));
    }

    #[test]
    fn two_values_of_one_type_are_told_without_it() {
        let limit =
            parse("'x-delivery-limit' for queue 'q' in vhost '/': received '1000' but current is '20'");
        assert_eq!(limit.to_string(), "`x-delivery-limit` is 20, asked for was 1000");
        let asked = AMQPValue::LongLongInt(1000);
        assert_eq!(limit.current(Some(&asked)), Some(Some(AMQPValue::LongLongInt(20))));
        let route =
            parse("'x-dead-letter-routing-key' for queue 'q' in vhost '/': received 'a' but current is 'b'");
        let asked = AMQPValue::LongString("a".into());
        assert_eq!(route.current(Some(&asked)), Some(Some(AMQPValue::LongString("b".into()))));
        assert_eq!(route.current(None), None);
    }

    #[test]
    fn an_order_that_cannot_be_kept_is_seen() {
        let single = parse(
            "'x-single-active-consumer' for queue 'q' in vhost '/': received the value 'true' of type 'bool' but current is none",
        );
        assert!(single.breaks_order());
    }

    #[test]
    fn a_queue_may_be_named_as_it_likes() {
        let odd = parse(
            "'durable' for queue 'a: received b but current is c' in vhost '/': received 'true' but current is 'false'",
        );
        assert_eq!(odd.to_string(), "`durable` is false, asked for was true");
        assert_eq!(Mismatch::parse("NOT_FOUND - no queue 'inequivalent' in vhost '/'"), None);
    }
}
