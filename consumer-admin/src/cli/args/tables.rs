//! What works on a database: relay, outbox, inbox, migrations.

use std::{num::NonZeroU16, num::NonZeroU32, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use consumer_admin::{OutboxFilter, OutboxState, RelayOptions};

use super::{BrokerArgs, DatabaseArgs, LimitArgs, OutputArgs, PagerArgs, duration};

#[derive(Debug, Args)]
pub(crate) struct Relay {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// Shards that are worked on at the same time; SQLite has one [default: 4]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroU16>,
    /// Rows that are taken at once [default: 500]
    #[arg(long, value_name = "N")]
    batch: Option<NonZeroU32>,
    /// Keep published rows for so long, as 7d [default: they are deleted]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    history: Option<Duration>,
    /// Attempts at a row that the broker refuses, before it is quarantined [default: 10]
    #[arg(long, value_name = "N")]
    max_attempts: Option<NonZeroU32>,
    /// Stop when nothing is left that would be published without anybody's help; the exit code is 1 if rows were quarantined
    #[arg(long)]
    pub(crate) until_empty: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl Relay {
    pub(crate) fn options(&self) -> RelayOptions {
        RelayOptions {
            workers: self.workers.map(NonZeroU16::get),
            batch: self.batch.map(NonZeroU32::get),
            history: self.history,
            max_attempts: self.max_attempts.map(NonZeroU32::get),
            until_empty: self.until_empty,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Outbox {
    /// How many rows there are, by destination and state, and the most frequent errors; changes nothing
    Stats(OutboxStats),
    /// One line for each row; changes nothing
    List(OutboxList),
    /// Headers and payload of single rows; changes nothing
    Show(OutboxShow),
    /// Have rows tried again that the broker has refused, as if they had never failed
    ///
    /// Meant are quarantined rows, and those that wait to be tried again. What is held behind them follows in its order. Relays
    /// need not be stopped.
    Requeue(OutboxRequeue),
    /// Delete rows: those that are quarantined, or the history
    ///
    /// The message of a quarantined row is lost; what is held behind it is published. Relays need not be stopped.
    Purge(OutboxPurge),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// To be published next
    Waiting,
    /// Behind an earlier row of its destination and key that has failed
    Held,
    /// Refused by the broker, and tried again later
    Retrying,
    /// Not tried any more
    Quarantined,
    /// Confirmed by the broker, where the relay keeps a history
    Published,
}

impl State {
    pub(crate) fn state(self) -> OutboxState {
        match self {
            Self::Waiting => OutboxState::Waiting,
            Self::Held => OutboxState::Held,
            Self::Retrying => OutboxState::Retrying,
            Self::Quarantined => OutboxState::Quarantined,
            Self::Published => OutboxState::Published,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Which rows")]
pub(crate) struct WhichRows {
    /// Only those that stand there
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// Only those for this topic or queue
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Only this message key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only this message id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Only with this text in the error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only the row of this number, as list shows it
    #[arg(long, value_name = "N")]
    row: Option<i64>,
}

impl WhichRows {
    pub(crate) fn filter(&self) -> OutboxFilter {
        let mut filter = OutboxFilter::default();
        if let Some(state) = self.state {
            filter = filter.state(state.state());
        }
        if let Some(destination) = &self.destination {
            filter = filter.destination(destination);
        }
        if let Some(key) = &self.key {
            filter = filter.key(&**key);
        }
        if let Some(id) = &self.id {
            filter = filter.message_id(id);
        }
        if let Some(text) = &self.error {
            filter = filter.error(text);
        }
        if let Some(row) = self.row {
            filter = filter.row(row);
        }
        filter
    }
}

#[derive(Debug, Args)]
pub(crate) struct OutboxStats {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OutboxList {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) pager: PagerArgs,
    #[command(flatten)]
    pub(crate) which: WhichRows,
}

#[derive(Debug, Args)]
pub(crate) struct OutboxShow {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: WhichRows,
}

#[derive(Debug, Args)]
pub(crate) struct OutboxRequeue {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Do not ask before more than 100 are requeued
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: WhichRows,
}

#[derive(Debug, Args)]
pub(crate) struct OutboxPurge {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// With --state published: only what was published longer ago than this, as 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
    /// Also rows that would still be published: their messages are lost. Needed with --state waiting, held or retrying
    #[arg(long)]
    pub(crate) unpublished: bool,
    /// Delete all rows of the state; needed where nothing else says which
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not ask before more than 100 are deleted
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) which: WhichRows,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inbox {
    /// How many records there are, by consumer; changes nothing
    Stats(InboxStats),
    /// One line for each record, the newest first; changes nothing
    List(InboxList),
    /// Delete records of a consumer: their messages take effect again if they come again
    ///
    /// A record says that the effect of a message is in the database. Once it is purged, a message of its key that is delivered
    /// again is handled as a new one, and takes effect again. So purge what is older than any way back of a message (redelivery,
    /// a redrive, a producer that sends again), or a key that shall take effect again.
    Purge(InboxPurge),
}

#[derive(Debug, Args)]
pub(crate) struct InboxStats {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InboxList {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Only records of this consumer
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
    /// Only this idempotency key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) pager: PagerArgs,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["older_than", "key"])]
pub(crate) struct InboxPurge {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// The consumer whose records are deleted
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: String,
    /// Only records that were written longer ago than this, as 30d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only the record of this idempotency key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Do not ask before more than 100 are deleted
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Print the statements instead, for migrations of one's own; nothing is connected
    #[arg(long)]
    pub(crate) print: bool,
}
