//! What is done with dead letters.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use clap::{
    Args, Subcommand,
    builder::{NonEmptyStringValueParser, PossibleValuesParser},
};
use consumer_admin::Filter;
use consumer_core::{dead_letters::Place, message::wire};

use super::{BrokerArgs, LimitArgs, OutputArgs, PagerArgs, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// One line for each dead letter; changes nothing
    ///
    /// On RabbitMQ nobody else can read the queue meanwhile.
    List(List),
    /// Headers and payload of single dead letters; changes nothing
    Show(Show),
    /// How many there are, by reason, error and consumer; changes nothing
    Stats(Stats),
    /// Send dead letters back to where they came from, or elsewhere
    ///
    /// Each is published, and settled when that is confirmed. It can be interrupted and started again: what was on its way
    /// is published again with the same redrive-count, and a consumer that deduplicates runs it once. (With --limit, the same
    /// command sends as many more.)
    Redrive(Redrive),
    /// Throw dead letters away, after writing them to a file
    Discard(Discard),
    /// Write dead letters to a file, one JSON object a line; changes nothing
    ///
    /// Payload, key and headers are carried byte for byte. On RabbitMQ the properties that are no headers (priority,
    /// reply-to, …) and the types of header values are not.
    Export(Export),
    /// Publish the letters of a file that export or discard wrote into a topic or queue of dead letters
    Import(Import),
}

#[derive(Debug, Args)]
pub(crate) struct From {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// The topic or queue of dead letters
    #[arg(long = "from", env = "DEAD_LETTER", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Which letters")]
pub(crate) struct Which {
    /// Only this reason
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(REASONS))]
    reason: Option<String>,
    /// Only with this text in the error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only those that this consumer set aside
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Only this message key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only this message id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Only the one at this place, as list shows it: partition@offset on Kafka; on RabbitMQ for show alone, since a place
    /// there means something only during one reading
    #[arg(long, value_name = "PLACE", value_parser = place)]
    pub(crate) place: Option<Place>,
    /// Only those that failed at this time or later: 2026-11-25T08:00:00Z, or how long ago: 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Only those that failed before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) from: From,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) pager: PagerArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) from: From,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(crate) from: From,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    pub(crate) from: From,
    /// Publish to this topic or queue instead of where each letter came from
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    /// At most so many in a second
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<NonZeroU32>,
    /// Change nothing, and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask before more than 100 are sent
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Discard {
    #[command(flatten)]
    pub(crate) from: From,
    /// Why; it is written beside each letter
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) because: String,
    /// Where the letters are written before they are thrown away; must not exist
    /// [default: discarded-<NAME>-<TIME>.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    /// Throw away every letter there is; needed where nothing says which
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) from: From,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    /// Where to; must not exist [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// The topic or queue of dead letters to publish to; from there they are redriven
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) to: String,
    /// What export or discard wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Lines to leave out at the beginning, as an import that ended early has said
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) skip: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl Which {
    pub(crate) fn filter(&self) -> Filter {
        let mut filter = Filter::default();
        if let Some(reason) = &self.reason {
            filter = filter.reason(reason);
        }
        if let Some(text) = &self.error {
            filter = filter.error(text);
        }
        if let Some(consumer) = &self.consumer {
            filter = filter.consumer(consumer);
        }
        if let Some(key) = &self.key {
            filter = filter.key(key);
        }
        if let Some(id) = &self.id {
            filter = filter.id(id);
        }
        if let Some(place) = self.place {
            filter = filter.place(place);
        }
        if let Some(since) = self.since {
            filter = filter.since(since);
        }
        if let Some(until) = self.until {
            filter = filter.until(until);
        }
        filter
    }
}

pub(crate) fn place(text: &str) -> Result<Place, String> {
    let parsed = text
        .split_once('@')
        .and_then(|(scope, seq)| Some(Place { scope: scope.parse().ok()?, seq: seq.parse().ok()? }));
    parsed.ok_or_else(|| "a place is two numbers, as in 3@17".to_owned())
}

/// As the wire format has them, and two for what was not written by us.
const REASONS: [&str; 7] =
    ["permanent", "undecodable", "attempts-exhausted", "conflict", "no-key", "broker", "unknown"];

/// A point in time, or how long ago.
pub(crate) fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = wire::parse_time(text) {
        return Ok(at);
    }
    let ago: Duration = humantime::parse_duration(text).map_err(|_| {
        "a time is written as 2026-11-25T08:00:00Z (UTC), or as how long ago: 2h, 30m".to_owned()
    })?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "that is before time began".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn times_are_points_or_how_long_ago() {
        assert!(time("2026-11-25T08:00:00Z").is_ok());
        assert!(time("2h").unwrap() < SystemTime::now());
        assert!(time("yesterday").unwrap_err().contains("2h"));
        assert_eq!(place("3@17"), Ok(Place { scope: 3, seq: 17 }));
        assert!(place("3").is_err() && place("a@1").is_err());
    }

    #[test]
    fn a_discard_needs_a_reason() {
        let base = ["consumer-admin", "dead-letters", "discard", "--broker", "kafka://h:1", "--from", "d"];
        assert!(Cli::try_parse_from(base).is_err());
        assert!(Cli::try_parse_from(base.into_iter().chain(["--because", "tests"])).is_ok());
    }
}
