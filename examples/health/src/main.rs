//! What an operator wants to know of a consumer, over HTTP: is it live, is it ready, and its metrics for Prometheus.
//!
//! ```console
//! $ cargo run -p health
//! http://127.0.0.1:9000/live  /ready  /metrics
//! ```
//!
//! Messages come from memory, one every 0.1 s. With `--hang-after 20` the mail provider stops answering, and as this
//! stack has no timeout, its handlers wait for ever: the broker sees nothing of it, the liveness probe does.

mod http;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use consumer::{
    Consumer, DeadLetterLayer, DedupLayer, Failure, Message, MetricsLayer, Outgoing, Publisher, RetryLayer,
    handler::{MessageId, State, handler},
    layers::metrics,
    memory::{MemoryBroker, MemoryStore},
    runtime::signal,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tower::ServiceBuilder;

const NAME: &str = "order-mails";
const TOPIC: &str = "orders.placed";
const DEAD: &str = "orders.placed.dead";

/// Probes and metrics of a consumer over HTTP
#[derive(Debug, Parser)]
struct Options {
    /// The address to listen on. Metrics name topics and counts: think before it is another than loopback
    #[arg(long, env, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The port to listen on; 0 is any that is free
    #[arg(long, env, default_value_t = 9000)]
    port: u16,
    /// How long nothing may be finished while something executes, until the consumer no longer counts as live
    #[arg(long, env, default_value = "30s", value_parser = humantime::parse_duration)]
    wedged_after: Duration,
    /// Let the mail provider stop answering after so many mails
    #[arg(long, env)]
    hang_after: Option<u64>,
}

/// Stands for a client that was built without a timeout.
#[derive(Debug, Clone)]
struct Mailer {
    sent: Arc<AtomicU64>,
    hang_after: u64,
}

async fn confirm(MessageId(_order): MessageId, State(mailer): State<Mailer>) -> Result<(), Failure> {
    if mailer.sent.fetch_add(1, Ordering::Relaxed) >= mailer.hang_after {
        std::future::pending::<()>().await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    // The recorder first: a stack that is built before it counts nothing.
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    metrics::describe();

    let broker = MemoryBroker::new();
    broker.create_topic(TOPIC, 4);
    broker.create_topic(DEAD, 1);
    let mailer = Mailer { sent: Arc::default(), hang_after: options.hang_after.unwrap_or(u64::MAX) };
    let stack = ServiceBuilder::new()
        .layer(MetricsLayer::new(NAME))
        .layer(DeadLetterLayer::new(broker.publisher(), DEAD).consumer(NAME))
        .layer(DedupLayer::new(MemoryStore::new(), NAME))
        .layer(RetryLayer::exponential(Duration::from_secs(1)).consumer(NAME))
        .service(handler(confirm).with_state(mailer));
    let consumer = Consumer::new(broker.source(NAME, [TOPIC]), stack)
        .name(NAME)
        .wedged_after(options.wedged_after)
        .shutdown(signal::terminate());

    let listener = TcpListener::bind((options.address, options.port)).await?;
    println!("http://{}/live  /ready  /metrics", listener.local_addr()?);
    let pages = http::pages(consumer.health(), prometheus);
    // The probes are served until the consumer has drained, so that the last thing they say is that it is stopping.
    let report = tokio::select! {
        report = consumer.run() => report?,
        served = axum::serve(listener, pages).into_future() => return Ok(served?),
        never = shop(broker) => match never? {},
    };
    println!("{report}");
    Ok(())
}

/// Places an order every 0.1 s.
async fn shop(broker: MemoryBroker) -> Result<Infallible, Box<dyn std::error::Error>> {
    let publisher = broker.publisher();
    let mut next = tokio::time::interval(Duration::from_millis(100));
    loop {
        next.tick().await;
        publisher.publish(Outgoing::new(TOPIC, Message::new("an order"))).await?;
    }
}
