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

mod broker;
mod http;
mod order;
mod orders;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, builder::NonEmptyStringValueParser};
use consumer::{BoxError, runtime::signal};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use http::Checkout;

/// Takes orders over HTTP and publishes an event for each
#[derive(Debug, Parser)]
struct Options {
    /// Where events go: memory:, kafka://host:port, amqp://user:password@host:port/%2f
    #[arg(
        long = "broker",
        env = "BROKER_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "memory:"
    )]
    url: String,
    /// The address to listen on. Anybody who reaches it can place orders: there are no users here
    #[arg(long, env, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))]
    listen: SocketAddr,
    /// The queue, on Kafka the topic; created if it is missing
    #[arg(long, env, value_name = "NAME", default_value = "orders.placed", value_parser = NonEmptyStringValueParser::new())]
    queue: String,
    /// How long the broker may take to confirm an event
    #[arg(long, env, value_name = "DURATION", default_value = "2s", value_parser = some_duration)]
    confirm_timeout: Duration,
}

fn some_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        read => read.map_err(|error| error.to_string()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let broker = match broker::by_url(&options.url, &options.queue, options.confirm_timeout) {
        Ok(broker) => broker,
        Err(usage) => {
            eprintln!("error: {usage}");
            return ExitCode::from(2);
        }
    };
    match serve(broker, options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(broker: broker::Connecting, options: Options) -> Result<(), BoxError> {
    let checkout = Checkout::new(broker.await?, options.queue, options.confirm_timeout);
    let listener = TcpListener::bind(options.listen).await?;
    println!("http://{}/orders", listener.local_addr()?);
    // Requests that have begun are answered: each takes a confirm's time at most.
    axum::serve(listener, http::routes(checkout)).with_graceful_shutdown(signal::terminate()).await?;
    Ok(())
}
