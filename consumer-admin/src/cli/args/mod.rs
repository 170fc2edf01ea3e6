//! Options, as `--help` shows them.
#![allow(rustdoc::invalid_html_tags, reason = "the texts of --help, as clap shows them")]

mod dead_letters;
mod tables;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use consumer_admin::{AdminError, Broker, Database};

pub(crate) use dead_letters::*;
pub(crate) use tables::*;

/// The operator's tool of the idempotent-consumer framework.
#[derive(Debug, Parser)]
#[command(name = "consumer-admin", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read dead letters, send them back, throw them away
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Publish what is in an outbox, until SIGTERM or SIGINT
    ///
    /// Any number of relays may run on one outbox. The first signal has what is on its way finished; the second ends the process
    /// at once, as does SIGKILL: what was on its way is then published again.
    Relay(Relay),
    /// Look at an outbox, have rows tried again, delete rows
    #[command(subcommand)]
    Outbox(Outbox),
    /// Look at an inbox, delete records
    #[command(subcommand)]
    Inbox(Inbox),
    /// Create the tables of inbox, outbox and dedup store, or bring them to this version
    Migrate(Migrate),
}

#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// The broker: kafka://host:port[,host:port], amqp://user:password@host:port/%2f
    #[arg(long = "broker", env = "BROKER_URL", hide_env_values = true, value_name = "URL")]
    broker: String,
}

impl BrokerArgs {
    pub(crate) fn open(&self) -> Result<Broker, AdminError> {
        Broker::from_url(&*self.broker)
    }
}

#[derive(Debug, Args)]
pub(crate) struct DatabaseArgs {
    /// The database: postgres://user:password@host:port/database, sqlite:orders.db
    #[arg(long = "database", env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database: String,
    /// The schema of the tables; PostgreSQL only [default: where the connection looks]
    #[arg(long, value_name = "NAME")]
    tables_schema: Option<String>,
    /// What the names of the tables begin with [default: consumer_]
    #[arg(long, value_name = "TEXT")]
    tables_prefix: Option<String>,
}

impl DatabaseArgs {
    pub(crate) fn schema(&self) -> Option<&str> {
        self.tables_schema.as_deref()
    }

    pub(crate) fn open(&self) -> Result<Database, AdminError> {
        Database::from_url(&self.database, self.tables_schema.as_deref(), self.tables_prefix.as_deref())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// One object a line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct PagerArgs {
    /// Do not page a table that is longer than the terminal
    #[arg(long)]
    pub(crate) no_pager: bool,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a time is written as 30s, 2h, 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
