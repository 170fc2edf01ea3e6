//! The command line.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, builder::NonEmptyStringValueParser};

/// Takes orders over HTTP, writes an event for each into an outbox, and publishes it
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take orders over HTTP (the same as no command)
    Serve(Serve),
    /// Consume the events of a broker and add their totals to the balances of the accounts
    Balances(Balances),
}

impl Command {
    pub(crate) fn servers(&self) -> &Servers {
        match self {
            Self::Serve(options) => &options.servers,
            Self::Balances(options) => &options.servers,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// The address to listen on. Anybody who reaches it can place orders: there are no users here
    #[arg(long, env, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))]
    pub(crate) listen: SocketAddr,
    /// The queue of the events, on Kafka the topic; created if it is missing. On RabbitMQ name one for each consumer,
    /// with commas: each gets every event
    #[arg(
        long,
        env,
        value_name = "NAME",
        default_value = "orders.placed",
        value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub(crate) queue: Vec<String>,
    /// Publish nothing: `consumer-admin relay` does
    #[arg(long)]
    pub(crate) no_relay: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Balances {
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// The queue of the events, on Kafka the topic
    #[arg(long, env, value_name = "NAME", default_value = "orders.placed", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) queue: String,
}

#[derive(Debug, Args)]
pub(crate) struct Servers {
    /// Where orders, events and balances are kept: sqlite:FILE, postgres://user:password@host/database
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite:checkout.db"
    )]
    pub(crate) database: String,
    /// How long the database may take to answer
    #[arg(long, env, value_name = "DURATION", default_value = "2s", value_parser = some_duration)]
    pub(crate) database_timeout: Duration,
    /// Where events go: memory: (to the balances, in the same process), kafka://host:port,
    /// amqp://user:password@host:port/%2f
    #[arg(long, env = "BROKER_URL", hide_env_values = true, value_name = "URL", default_value = "memory:")]
    pub(crate) broker: String,
}

fn some_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        read => read.map_err(|error| error.to_string()),
    }
}
