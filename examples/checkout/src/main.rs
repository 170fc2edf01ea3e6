//! Takes orders over HTTP. Order, idempotency key and event are written in one transaction; a relay publishes the events,
//! and a second handler adds them up to balances. Nothing is lost and nothing counts twice, whatever dies when.
//!
//! ```console
//! $ cargo run -p checkout
//! http://127.0.0.1:8080/orders
//! $ curl -i http://127.0.0.1:8080/orders -H 'idempotency-key: 17' -H 'content-type: application/json' \
//!     -d '{"email":"ann@example.com","total":1999}'
//! HTTP/1.1 201 Created
//! content-type: application/json
//! location: /orders/o-17
//! content-length: 58
//! date: Wed, 25 Nov 2026 20:36:08 GMT
//!
//! {"order_id":"o-17","email":"ann@example.com","total":1999}
//! $ curl http://127.0.0.1:8080/accounts/ann@example.com
//! {"email":"ann@example.com","balance":1999}
//! ```
//!
//! That is all in one process and one file, `checkout.db`: the relay hands the events to the handler of the balances. With
//! servers, each part is a process, and there may be any number of each:
//!
//! ```console
//! $ cargo run -p checkout --features postgres,kafka -- serve --database postgres://… --broker kafka://…
//! $ cargo run -p checkout --features postgres,kafka -- balances --database postgres://… --broker kafka://…
//! $ cargo run -p orders --features kafka,redis -- consume --broker kafka://… --store redis://…
//! ```
//!
//! On RabbitMQ each consumer has a queue, and the web service writes an event for each of them:
//! `--queue orders.placed,orders.placed.balances`. With `--no-relay` it publishes nothing; `consumer-admin relay` does that
//! in a process of its own.
//!
//! # What an answer means
//! - **201**: the order is committed, and its event with it. Whether the broker is there does not matter: the event waits in
//!   the outbox. The balance follows when the event has arrived.
//! - **503** with `Retry-After`: the database did not answer in time. It may have committed all the same; the same request
//!   again finds that, or does it.
//!   (It does not start without its database.)
//! - **4xx**: this request will never do; the body (`application/problem+json`) says why, all reasons at once.
//!
//! # A request that comes again
//! A client that got no answer sends the same request again, under the same `Idempotency-Key` (or with an `order_id` of
//! its own, or with the one that a 503 has told). It gets the answer that it missed, and no second event is written: keys and
//! ids are unique in the database, so it does not matter which process gets the request, or whether it was started again
//! meanwhile. Two that come at once wait for each other there. The caller's `traceparent` and `tracestate` go with the event.
//!
//! # What a crash costs
//! | a process dies, or loses its database, | then |
//! |---|---|
//! | before the commit | there is neither order nor event; the client tries again |
//! | after the commit, before the answer | the client tries again and gets its 201; there is one order and one event |
//! | after the commit, before the publish | the event is in the outbox, and the next relay publishes it |
//! | after the publish, before its row is deleted | it is published again, under the same message id |
//! | in the handler of the balances | record and balance are rolled back together; the event comes again |
//! | after the handler's commit, before the ack | the event comes again, the inbox knows it, and nothing is added |
//!
//! So the sum of all balances is the sum of all orders, each once, as soon as the events have arrived; a test kills
//! everything in turn and compares. What it does not cover: an event that comes again later than the inbox remembers (7
//! days), and effects outside the database, such as the mails of the example `orders`: those are at least once, and
//! deduplicated by its store.
//!
//! # Why there is no broker in memory
//! With `--broker memory:`, the default, what a broker in memory has confirmed would be gone with the process: published,
//! deleted from the outbox, and not yet applied. So here an event is confirmed when the handler has committed it. The outbox
//! is the queue, and it is on the disk; an event that the handler cannot apply is tried again and in the end quarantined
//! there, where `consumer-admin outbox` shows it. Other programs get no events this way.

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
        Place::Postgres(options) => run::<sqlx::Postgres>(options, broker, command).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", consumer::Failure::permanent(error).cause());
            ExitCode::FAILURE
        }
    }
}

const NO_BROKER: &str =
    "`checkout balances` needs a --broker: with memory: it is `checkout serve` that keeps the balances";

type Places = (Place, Option<Box<dyn Broker>>);

fn by_urls(command: &Command) -> Result<Places, BoxError> {
    let servers = command.servers();
    let broker = broker::by_url(&servers.broker)?;
    if broker.is_none() && matches!(command, Command::Balances(_)) {
        return Err(NO_BROKER.into());
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
        (Command::Balances(_), None) => Err(NO_BROKER.into()),
    }
}
