//! Takes orders over HTTP and publishes `orders.placed` for each, which the example `orders` consumes.
//!
//! ```console
//! $ cargo run -p checkout
//! http://127.0.0.1:8080/orders
//! $ curl -i http://127.0.0.1:8080/orders -H 'idempotency-key: 17' -H 'content-type: application/json' \
//!     -d '{"email":"ann@example.com","total":1999}'
//! HTTP/1.1 201 Created
//! location: /orders/o-17
//! ```
//!
//! `--broker` says where the events go: `memory:` (nobody reads them there), and with `--features kafka,amqp` a topic by
//! `kafka://…` or a queue by `amqp://…`.
//!
//! # What an answer means
//! - **201**: the broker keeps the event. Nobody waited for the mail: that is the consumer's business.
//! - **503** with `Retry-After`: the broker did not confirm in time. The order is kept as *unpublished*, which nobody
//!   sees yet; the same request again completes it.
//! - **4xx**: this request will never do; the body (`application/problem+json`) says why, all reasons at once.
//!
//! # A request that comes again
//! A client that got no answer sends the same request again, under the same `Idempotency-Key` (or with an `order_id` of
//! its own). It gets the answer that it missed. If the event has to be published again for that, it has the same message
//! id and the same payload, so that consumers recognise it: the id is made from the order's id, and that from the key.
//! The caller's `traceparent` and `tracestate` go with the event.
//!
//! # What a crash costs
//! Storing and publishing are two steps, and between them this service can die:
//!
//! - *stored, not published*: the client has no answer. If it tries again, that completes the order. If it never does,
//!   there is an order of which no consumer hears. In memory, as here, the order is gone with the process; with a
//!   database it would stay unpublished until somebody looks.
//! - *published, not marked as placed*: consumers work on an order that this service does not show. A retry publishes
//!   again and marks it; consumers recognise the duplicate.
//!
//! To publish first and store then would only exchange the two. The gap closes when order and event are written in one
//! database transaction and a relay publishes what was committed: a transactional outbox, which comes with a later part
//! of this project. Until then this is what careful services do, and where they stop.

mod balances;
mod broker;
mod database;
mod http;
mod options;
mod order;
mod orders;
mod serve;

use std::process::ExitCode;

use clap::Parser;
use consumer::BoxError;
use tracing_subscriber::EnvFilter;

use broker::Broker;
use database::{Place, Shop};
use options::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, serve } = Cli::parse();
    let command = command.unwrap_or(Command::Serve(serve));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (place, broker) = match by_urls(&command) {
        Ok(found) => found,
        Err(usage) => {
            eprintln!("error: {usage}");
            return ExitCode::from(2);
        }
    };
    let done = match place {
        Place::Sqlite(options) => run::<sqlx::Sqlite>(options, broker, command).await,
        #[cfg(feature = "postgres")]
        Place::Postgres(options) => run::<sqlx::Postgres>(*options, broker, command).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", consumer::Failure::permanent(error).cause());
            ExitCode::FAILURE
        }
    }
}

type Places = (Place, Option<Box<dyn Broker>>);

fn by_urls(command: &Command) -> Result<Places, BoxError> {
    let servers = command.servers();
    let broker = broker::by_url(&servers.broker)?;
    if broker.is_none() && matches!(command, Command::Balances(_)) {
        return Err(
            "`checkout balances` needs a --broker: with memory: the balances are kept by `checkout serve`"
                .into(),
        );
    }
    Ok((database::by_url(&servers.database)?, broker))
}

async fn run<DB: Shop>(
    options: <DB::Connection as sqlx::Connection>::Options,
    broker: Option<Box<dyn Broker>>,
    command: Command,
) -> Result<(), BoxError> {
    let pool = database::open::<DB>(options, command.servers().database_timeout).await?;
    match (command, broker) {
        (Command::Serve(options), broker) => serve::run(pool, broker, options).await,
        (Command::Balances(options), Some(broker)) => balances::run(pool, &*broker, &options.queue).await,
        (Command::Balances(_), None) => Err("no broker".into()),
    }
}
