//! Creates the retry topics that are missing.

use std::time::Duration;

use crate::{
    KafkaAdmin,
    admin::HEADER_ROOM,
    builder::Options,
    config::Connection,
    error::{KafkaError, Kind},
    retry::RetryTopic,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// What a topic takes by default; for a user who may not look.
const DEFAULT_MESSAGE_BYTES: u64 = 1_048_588;

/// Blocks until all retry topics of the source are there. Its topics have to be.
///
/// # Errors
/// When no broker answers in time, or a topic cannot be created: then with what to create.
pub(crate) fn create_missing(connection: &Connection, options: &Options) -> Result<(), KafkaError> {
    if options.retry.names().next().is_none() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| {
        KafkaError::new(Kind::Other, "the retry topics cannot be looked for").with_source(error)
    })?;
    let admin = KafkaAdmin::with(connection.clone())?.timeout(options.start_timeout);
    runtime.block_on(create(&admin, options))
}

async fn create(admin: &KafkaAdmin, options: &Options) -> Result<(), KafkaError> {
    let mut missing = Vec::new();
    for topic in options.retry.iter() {
        match admin.partitions(&topic.name).await {
            Ok(Some(_)) => check(admin, topic).await?,
            Ok(None) => missing.push(topic),
            // Without the right to see it, one that is missing cannot be told from others.
            Err(error) if error.is_denied() => missing.push(topic),
            Err(error) => return Err(error),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (mut partitions, mut bytes) = (1, 0);
    for topic in &options.topics {
        partitions = partitions.max(admin.partitions(topic).await?.unwrap_or(1));
        bytes = bytes.max(match admin.max_message_bytes(topic).await {
            Err(error) if error.is_denied() => DEFAULT_MESSAGE_BYTES,
            answer => answer?,
        });
    }
    let wanted: Vec<_> = missing.iter().map(|topic| (&*topic.name, settings(topic.delay, bytes))).collect();
    for (name, settings) in &wanted {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, &**value)).collect();
        match admin.ensure_topic(name, partitions, &settings).await {
            Ok(false) => {}
            Ok(true) => tracing::info!(topic = name, partitions, ?settings, "retry topic created"),
            Err(error) if error.is_unreachable() || error.is_authentication() => return Err(error),
            Err(error) => {
                let kind = if error.is_denied() { Kind::Denied } else { Kind::Other };
                return Err(KafkaError::new(kind, by_hand(partitions, &wanted, &error)));
            }
        }
    }
    Ok(())
}

/// Whether what waits in a topic that is there is kept for long enough.
async fn check(admin: &KafkaAdmin, topic: &RetryTopic) -> Result<(), KafkaError> {
    let mut settings = [None, None];
    for (value, name) in settings.iter_mut().zip(["cleanup.policy", "retention.ms"]) {
        *value = match admin.setting(&topic.name, name).await {
            Err(error) if error.is_denied() => {
                tracing::warn!(
                    topic = topic.name,
                    "no right to read the settings of the retry topic: it must keep messages for twice its delay, and not \
                     be compacted"
                );
                return Ok(());
            }
            answer => answer?,
        };
    }
    match loses(topic.delay, settings[0].as_deref(), settings[1].as_deref()) {
        None => Ok(()),
        Some(why) => Err(KafkaError::config(format!("the retry topic `{}` {why}", topic.name))),
    }
}

/// Why messages get lost while they wait, and what to set.
fn loses(delay: Duration, policy: Option<&str>, retention: Option<&str>) -> Option<String> {
    if let Some(policy) = policy
        && !policy.split(',').any(|part| part.trim() == "delete")
    {
        return Some(format!(
            "has cleanup.policy={policy}: of the messages that wait with one key it keeps the last only; set \
             cleanup.policy=delete"
        ));
    }
    let kept: u128 = retention?.parse().ok()?;
    let needed = delay.saturating_mul(2).as_millis();
    (kept < needed).then(|| {
        format!("has retention.ms={kept}, and messages wait there: set retention.ms to {needed} or more, twice the delay")
    })
}

type Settings = [(&'static str, String); 3];

fn settings(delay: Duration, bytes: u64) -> Settings {
    let retention = (7 * DAY).max(delay.saturating_mul(2).saturating_add(DAY)).as_millis();
    // More than the broker can count is for ever.
    let retention = i64::try_from(retention).unwrap_or(-1);
    [
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", retention.to_string()),
        ("max.message.bytes", (bytes + HEADER_ROOM).to_string()),
    ]
}

fn by_hand(partitions: u32, wanted: &[(&str, Settings)], error: &KafkaError) -> String {
    let topic = |(name, settings): &(&str, Settings)| {
        let settings: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("`{name}` ({})", settings.join(", "))
    };
    let topics: Vec<_> = wanted.iter().map(topic).collect();
    format!(
        "retry topics are missing and cannot be created: {error}. Create them with {partitions} partitions: {}",
        topics.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_forgets_what_waits_is_refused_with_the_setting() {
        let said = |policy, retention| loses(30 * Duration::from_secs(1), policy, retention);
        for fine in [(Some("delete"), Some("60000")), (Some("compact,delete"), Some("-1")), (None, None)] {
            assert_eq!(said(fine.0, fine.1), None, "{fine:?}");
        }
        assert!(said(Some("compact"), Some("-1")).unwrap().contains("set cleanup.policy=delete"));
        assert!(said(Some("delete"), Some("59999")).unwrap().contains("set retention.ms to 60000"));
    }

    #[test]
    fn what_is_to_be_created_by_hand_is_said_with_its_settings() {
        let wanted = [30, 30 * 24 * 3600].map(|s| ("g.retry", settings(Duration::from_secs(s), 1000)));
        let said = by_hand(4, &wanted, &KafkaError::new(Kind::Denied, "no"));
        for part in
            ["no. Create", "4 partitions", "`g.retry` (cleanup.policy=delete, retention.ms=604800000, "]
        {
            assert!(said.contains(part), "{said}");
        }
        assert!(
            said.contains("retention.ms=5270400000") && said.ends_with("max.message.bytes=17384)"),
            "{said}"
        );
        assert_eq!(settings(Duration::MAX, 0)[1].1, "-1");
    }
}
