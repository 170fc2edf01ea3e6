//! Retry topics: where the delayed copies of a group's messages wait, one topic for each delay.
//!
//! Only the group itself consumes them, so no other one sees a copy. The publisher puts a copy in (`route`), the thread
//! holds it back until it is due (`waiting`), and the source creates at its start what is missing (`create`).

pub(crate) mod create;
pub(crate) mod route;
pub(crate) mod waiting;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use consumer_core::message::wire;

use crate::error::KafkaError;

/// The retry topics of a group.
#[derive(Debug, Clone, Default)]
pub(crate) struct RetryTopics {
    /// None where it could be another group's.
    prefix: Option<String>,
    /// Those of the delays that are configured, the shortest first.
    topics: Vec<RetryTopic>,
    /// Those of delays that no longer are: found at the start, consumed, and not written to.
    left_over: Arc<OnceLock<Vec<RetryTopic>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct RetryTopic {
    pub(crate) name: String,
    pub(crate) delay: Duration,
}

impl RetryTopics {
    /// `<group>.retry.<delay>`, and `<group>.retry.<replay>.<delay>` for a replay.
    ///
    /// # Errors
    /// When a replay's name could make two groups share a topic: of the parts between the dots, the last but one is
    /// `retry` or the name of the replay.
    pub(crate) fn new(group: &str, replay: Option<&str>, delays: &[Duration]) -> Result<Self, KafkaError> {
        let mut delays: Vec<_> = delays.iter().copied().filter(|delay| !delay.is_zero()).collect();
        delays.sort_unstable();
        let is_shared = |name: &str| name.contains('.') || name == "retry";
        let prefix = match replay {
            // Without delays none is written; but those of the other group would be consumed as left over.
            Some(name) if is_shared(name) && delays.is_empty() => return Ok(Self::default()),
            Some(name) if is_shared(name) => {
                return Err(KafkaError::config(format!(
                    "with `.delays(…)` a replay cannot be named `{name}`, since its retry topics could be those of \
                     another group: take a name without dots that is not `retry`"
                )));
            }
            Some(name) => format!("{group}.retry.{name}"),
            None => format!("{group}.retry"),
        };
        let mut topics: Vec<RetryTopic> = delays
            .into_iter()
            .map(|delay| RetryTopic { name: format!("{prefix}.{}", wire::format_delay(delay)), delay })
            .collect();
        topics.dedup_by(|later, first| later.name == first.name);
        Ok(Self { prefix: Some(prefix), topics, left_over: Arc::default() })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &RetryTopic> {
        self.topics.iter()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(|topic| &*topic.name)
    }

    /// Takes note of the topics there are: what waits for a delay that was taken off the list is consumed all the same.
    pub(crate) fn find_left_over<'a>(&self, there: impl Iterator<Item = &'a str>) {
        let retry = |name: &str| {
            let delay = self.said_by(name)?;
            (self.delay_of(name).is_none()).then(|| RetryTopic { name: name.to_owned(), delay })
        };
        let _ = self.left_over.set(there.filter_map(retry).collect());
    }

    /// The delay in the name of a retry topic of the group.
    fn said_by(&self, name: &str) -> Option<Duration> {
        name.strip_prefix(self.prefix.as_deref()?)?.strip_prefix('.').and_then(wire::parse_delay)
    }

    /// Whether it is a retry topic of the group, whichever source has found it.
    pub(crate) fn is_own(&self, topic: &str) -> bool {
        self.said_by(topic).is_some()
    }

    pub(crate) fn left_over(&self) -> &[RetryTopic] {
        self.left_over.get().map_or(&[], |topics| topics)
    }

    /// All that are consumed.
    fn consumed(&self) -> impl Iterator<Item = &RetryTopic> {
        self.topics.iter().chain(self.left_over())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.consumed().next().is_none()
    }

    /// The topic for messages that wait so long.
    fn of(&self, delay: Duration) -> Option<&RetryTopic> {
        let written = wire::format_delay(delay);
        self.topics.iter().find(|topic| wire::format_delay(topic.delay) == written)
    }

    /// How long messages of this topic wait; `None` if it is no retry topic.
    pub(crate) fn delay_of(&self, topic: &str) -> Option<Duration> {
        self.consumed().find(|retry| retry.name == topic).map(|retry| retry.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(group: &str, replay: Option<&str>, seconds: &[u64]) -> Vec<String> {
        let delays: Vec<_> = seconds.iter().copied().map(Duration::from_secs).collect();
        RetryTopics::new(group, replay, &delays).unwrap().names().map(str::to_owned).collect()
    }

    #[test]
    fn there_is_one_topic_for_each_delay() {
        assert_eq!(names("mails", None, &[300, 30, 0, 30]), ["mails.retry.30s", "mails.retry.300s"]);
        let topics = RetryTopics::new("g", None, &[Duration::from_millis(1500)]).unwrap();
        assert_eq!(topics.delay_of("g.retry.1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(topics.delay_of("g.retry.1s"), None);
        assert!(topics.of(Duration::from_micros(1_500_900)).is_some(), "it has the same name");
        assert!(topics.of(Duration::from_secs(1)).is_none());
    }

    #[test]
    fn a_delay_that_was_taken_off_is_found_among_the_topics_there_are() {
        let topics = RetryTopics::new("g", None, &[Duration::from_secs(30)]).unwrap();
        let there = [
            "g",
            "g.retry.30s",
            "g.retry.300s",
            "g.retry.fix.300s",
            "g.retry.s",
            "gg.retry.7s",
            "g.retry.1500ms",
        ];
        topics.find_left_over(there.into_iter());
        let found: Vec<_> =
            topics.left_over().iter().map(|topic| (&*topic.name, topic.delay.as_millis())).collect();
        assert_eq!(found, [("g.retry.300s", 300_000), ("g.retry.1500ms", 1500)]);
        assert_eq!(topics.delay_of("g.retry.300s"), Some(Duration::from_secs(300)));
        assert!(topics.of(Duration::from_secs(300)).is_none(), "nothing is written there");
        assert_eq!(topics.names().collect::<Vec<_>>(), ["g.retry.30s"]);
    }

    #[test]
    fn a_replay_shares_no_topic_with_another_group() {
        assert_eq!(names("g", Some("fix"), &[30]), ["g.retry.fix.30s"]);
        for name in ["retry", "a.retry", "v1.2"] {
            let error = RetryTopics::new("g", Some(name), &[Duration::from_secs(1)]).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(name), "{error}");
            let without = RetryTopics::new("g", Some(name), &[]).unwrap();
            let there = format!("g.retry.{name}.30s");
            without.find_left_over([&*there].into_iter());
            assert!(without.is_empty(), "it may be another group's");
        }
        // Such a group without a replay has other names.
        assert_eq!(names("g.retry.fix", None, &[30]), ["g.retry.fix.retry.30s"]);
    }
}
