//! Which topic a message for later goes to.

use std::time::SystemTime;

use consumer_core::{Outgoing, PublishError, message::wire};

use crate::builder::Options;

/// The message as it is to be published. `source` is what the publisher was made from.
///
/// # Errors
/// When the message is for later and the source has no topic where it could wait. Trying again does not help.
pub(crate) fn route(
    source: Option<&Options>,
    outgoing: Outgoing,
    now: SystemTime,
) -> Result<(Option<String>, Outgoing), PublishError> {
    let Some(delay) = outgoing.delay_by() else {
        if outgoing.due().is_none() {
            return Ok((None, outgoing));
        }
        return Err(refused(&outgoing, "a time is not enough: ask for one of the delays of the source"));
    };
    let written = wire::format_delay(delay);
    let Some(options) = source else {
        return Err(refused(
            &outgoing,
            &format!("use `publisher()` of a source that is built with `.delays([…])`, {written} among them"),
        ));
    };
    let target = outgoing.target();
    if !options.topics.iter().any(|topic| topic == target) && !options.retry.is_own(target) {
        let topics = &options.topics;
        return Err(refused(
            &outgoing,
            &format!("the source consumes {topics:?}, so it would not come back"),
        ));
    }
    let Some(topic) = options.retry.of(delay) else {
        let known: Vec<_> = options.retry.iter().map(|topic| wire::format_delay(topic.delay)).collect();
        return Err(refused(
            &outgoing,
            &format!("add {written} to `.delays([…])` of the source, which has {known:?}"),
        ));
    };
    let name = topic.name.clone();
    // What the source goes by; one of an earlier round would let the message through at once.
    let due = outgoing.due().unwrap_or_else(|| now + delay);
    Ok((Some(name), outgoing.set(wire::RETRY_NOT_BEFORE, wire::format_time(due))))
}

fn refused(outgoing: &Outgoing, what_to_do: &str) -> PublishError {
    let target = outgoing.target();
    PublishError::refused(format!(
        "kafka cannot hold a message for `{target}` back until later: {what_to_do}"
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consumer_core::Message;

    use super::*;
    use crate::KafkaSource;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn routed(outgoing: Outgoing) -> Result<(Option<String>, Outgoing), PublishError> {
        let source = KafkaSource::builder("h:1").group("g").topic("t").delays([Duration::from_secs(30)]);
        route(Some(&source.build().unwrap().options), outgoing, NOW)
    }

    fn to(target: &str) -> Outgoing {
        Outgoing::new(target, Message::builder().header("retry-not-before", "2000-01-01T00:00:00Z").build())
    }

    #[track_caller]
    fn refusal(outgoing: Outgoing, says: &str) {
        let error = routed(outgoing).unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains(says), "{error}");
    }

    #[test]
    fn what_is_delayed_goes_to_the_topic_of_its_delay_from_wherever_it_came() {
        // A delay that is no longer configured: what waited there comes from there.
        for target in ["t", "g.retry.30s", "g.retry.7s"] {
            let (topic, outgoing) = routed(to(target).delay(Duration::from_secs(30))).unwrap();
            assert_eq!(topic.as_deref(), Some("g.retry.30s"));
            let headers = outgoing.headers();
            assert_eq!(headers.get_str("retry-not-before"), Some("1970-01-01T00:00:30.000Z"), "the new one");
        }
        let at = NOW + Duration::from_secs(31);
        let (_, outgoing) = routed(to("t").delay(Duration::from_secs(30)).not_before(at)).unwrap();
        assert_eq!(outgoing.headers().get_str("retry-not-before"), Some("1970-01-01T00:00:31.000Z"));
        assert_eq!(routed(to("dead")).unwrap().0, None, "what is not for later goes anywhere");
    }

    #[test]
    fn what_cannot_come_back_in_time_is_refused_with_what_to_do() {
        refusal(to("t").delay(Duration::from_secs(60)), "add 60s to `.delays");
        refusal(to("t").not_before(NOW), "ask for one of the delays");
        refusal(to("g.retry.fix.30s").delay(Duration::from_secs(30)), "would not come back");
        refusal(to("other").delay(Duration::from_secs(30)), "would not come back");
        let error = route(None, to("t").delay(Duration::from_secs(30)), NOW).unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("`publisher()`"), "{error}");
    }
}
