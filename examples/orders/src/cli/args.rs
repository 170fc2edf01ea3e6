//! Commands and options, as section by section of `orders --help`.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    reason = "the texts of --help, as clap shows them"
)]

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand,
    builder::{BoolishValueParser, NonEmptyStringValueParser},
};

use super::{
    Fraction, Order,
    value::{Delays, delays, duration, fraction, some_duration},
};

/// Confirms each order by one mail, however often the order is delivered.
///
/// Without a command: the demo, which needs no server.
#[derive(Debug, Parser)]
#[command(name = "orders", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Consume orders and write the mail log
    Consume(Consume),
    /// Publish orders, with the mixture of trouble that is asked for
    Produce(Produce),
}

#[derive(Debug, Args)]
pub(crate) struct Consume {
    #[command(flatten)]
    pub(crate) broker: Broker,
    /// Where ids are remembered: redis://host:port[/db], postgres://user@host/db, sqlite:FILE, memory:
    #[arg(long, env = "STORE_URL", hide_env_values = true, value_name = "URL", default_value = "memory:")]
    pub(crate) store: String,
    /// The consumer group, and the scope of what is remembered; on RabbitMQ only the scope
    #[arg(long, env, value_name = "NAME", default_value = "order-mails", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) group: String,
    /// Where a JSON line is appended for each mail
    #[arg(long, env, value_name = "FILE", default_value = "mails.jsonl")]
    pub(crate) mail_log: PathBuf,
    /// Messages held at once, executing or waiting
    #[arg(long, env, value_name = "N", default_value = "256")]
    pub(crate) max_in_flight: NonZeroU32,
    /// Attempts for each message, over all processes; also bounds crashes
    #[arg(long, env, value_name = "N", default_value = "3")]
    pub(crate) attempts: NonZeroU32,
    /// The longest wait after the first failed attempt; doubles with each further one
    #[arg(long, env, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(crate) backoff: Duration,
    /// Attempts in a second; 0 is unlimited
    #[arg(long, env, value_name = "N", default_value = "0")]
    pub(crate) rate: u32,
    /// How long the mail provider takes
    #[arg(long, env, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(crate) handler_delay: Duration,
    /// How long a message stays reserved for a process that died
    #[arg(long, env, value_name = "DURATION", default_value = "30s", value_parser = some_duration)]
    pub(crate) lease: Duration,
    /// How long an id is remembered
    #[arg(long, env, value_name = "DURATION", default_value = "24h", value_parser = some_duration)]
    pub(crate) retention: Duration,
    /// How long executing messages may take to finish once a stop was asked for
    #[arg(long, env, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) drain: Duration,
    /// What still fails comes again by the broker after each of these
    #[arg(long, env, value_name = "D[,D…]", value_parser = delays)]
    pub(crate) delays: Option<Delays>,
    /// Which messages wait for each other; on RabbitMQ any but none needs a queue with single active consumer
    #[arg(long, env, default_value = "none")]
    pub(crate) ordering: Order,
    /// Let the mail provider accept every address
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub(crate) repaired: bool,
    /// Stop when nothing came for this long; without it, run until SIGINT or SIGTERM
    #[arg(long, env, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) until_idle: Option<Duration>,
}

impl Consume {
    /// Of delayed retry; none if it is not asked for.
    pub(crate) fn delays(&self) -> &[Duration] {
        self.delays.as_ref().map_or(&[], |delays| &delays.0)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Produce {
    #[command(flatten)]
    pub(crate) broker: Broker,
    /// Messages published in all; the fractions below are of them
    #[arg(long, env, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u64).range(..=4_000_000_000))]
    pub(crate) count: u64,
    /// Orders published once more, with the same id
    #[arg(long, env, value_name = "FRACTION", default_value = "0", value_parser = fraction)]
    pub(crate) duplicates: Fraction,
    /// Payloads that cannot be read
    #[arg(long, env, value_name = "FRACTION", default_value = "0", value_parser = fraction)]
    pub(crate) undecodable: Fraction,
    /// Orders whose mail fails twice before it goes out
    #[arg(long, env, value_name = "FRACTION", default_value = "0", value_parser = fraction)]
    pub(crate) flaky: Fraction,
    /// Orders whose mail fails for good
    #[arg(long, env, value_name = "FRACTION", default_value = "0", value_parser = fraction)]
    pub(crate) bouncing: Fraction,
    /// Decides ids, order and addresses; random by default, and then printed on stderr
    #[arg(long, env, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Broker {
    /// Where orders come from: kafka://host:port[,host:port], amqp://user:password@host:port/%2f
    #[arg(
        long = "broker",
        env = "BROKER_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "memory:"
    )]
    pub(crate) url: String,
    /// The topic of orders; on RabbitMQ the queue
    #[arg(long, env, value_name = "NAME", default_value = "orders.placed", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) topic: String,
    /// The topic or queue of dead letters [default: <topic>.dead]
    #[arg(long, env, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    dead_letter: Option<String>,
}

impl Broker {
    pub(crate) fn dead_letter(&self) -> String {
        self.dead_letter.clone().unwrap_or_else(|| format!("{}.dead", self.topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed_and_every_option_has_its_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            for option in sub.get_opts() {
                let long = option.get_long().unwrap();
                let expected = match long {
                    "broker" => "BROKER_URL".to_owned(),
                    "store" => "STORE_URL".to_owned(),
                    other => other.replace('-', "_").to_uppercase(),
                };
                assert_eq!(option.get_env().unwrap().to_str(), Some(&*expected), "--{long}");
            }
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let cli = Cli::try_parse_from(["orders", "consume"]).unwrap();
        let Some(Command::Consume(consume)) = cli.command else { panic!("{cli:?}") };
        assert_eq!((&*consume.broker.url, &*consume.store), ("memory:", "memory:"));
        assert_eq!((&*consume.broker.topic, &*consume.group), ("orders.placed", "order-mails"));
        assert_eq!(consume.broker.dead_letter(), "orders.placed.dead");
        assert_eq!(consume.mail_log.to_str(), Some("mails.jsonl"));
        assert_eq!((consume.max_in_flight.get(), consume.attempts.get(), consume.rate), (256, 3, 0));
        let seconds =
            [consume.backoff, consume.lease, consume.retention, consume.drain, consume.handler_delay];
        assert_eq!(seconds.map(|d| d.as_secs()), [1, 30, 86_400, 10, 0]);
        assert_eq!((consume.ordering, consume.until_idle, consume.repaired), (Order::None, None, false));
        assert!(consume.delays.is_none());
    }
}
