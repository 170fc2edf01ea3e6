//! One event, three services: analytics, notifications and inventory each get every order that is placed.
//!
//! ```console
//! $ cargo run -p fan-out
//!                                      analytics  notifications  inventory
//! 12 orders placed                            12             12         12
//! 12 more; the mail provider is down          24             12         24
//! the mail provider is back                   24             24         24
//! inventory once more, as a replay                                      24
//! ```
//!
//! The services share nothing but the event: each has its position, its retries and its dead letters. While the mail
//! provider is down, notifications hold their messages and try again; the others do not notice, and nothing is lost.
//!
//! How one event reaches three services is the broker's business:
//!
//! | | Kafka, and memory | RabbitMQ |
//! |---|---|---|
//! | a service is | a consumer group of the topic | a queue bound to the fanout exchange |
//! | the event is stored | once; each group has its own offsets | in each queue |
//! | a service that is new gets | all that the topic still has | what is published from now on |
//! | once more | a replay, under a name | not possible: what is acked is gone |
//!
//! With `--features kafka,amqp` the URL chooses: `--broker kafka://host:port`, `--broker amqp://user:password@host:port`.
//! Ids are remembered in memory here; a service remembers them in Redis, as `orders` does.

mod broker;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "amqp")]
mod rabbitmq;
mod service;

use std::{ops::Range, process::ExitCode, time::Duration};

use clap::Parser;
use consumer::{BoxError, DynPublisher, Message, Outgoing, Publisher, memory::MemoryStore};

use broker::Broker;
use service::{Service, Work};

/// How long each part of the story may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Three services each get every order that is placed
#[derive(Debug, Parser)]
struct Options {
    /// Where the events go: memory:, kafka://host:port, amqp://user:password@host:port/%2f
    #[arg(
        long = "broker",
        env = "BROKER_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "memory:"
    )]
    url: String,
    /// The topic, on RabbitMQ the exchange
    #[arg(long, env, value_name = "NAME", default_value = "orders.placed")]
    topic: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let told = match broker::by_url(&options.url, &options.topic) {
        Ok(broker) => story(&*broker, &options.topic).await,
        Err(usage) => {
            eprintln!("error: {usage}");
            return ExitCode::from(2);
        }
    };
    told.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

async fn story(broker: &dyn Broker, topic: &str) -> Result<(), BoxError> {
    broker.prepare(&["analytics", "notifications", "inventory"]).await?;
    let store = MemoryStore::new();
    let start = |name| Service::start(broker, topic, name, &store);
    let services = [start("analytics")?, start("notifications")?, start("inventory")?];
    let [analytics, notifications, inventory] = services.each_ref().map(|service| &service.work);
    let row = |what: &str| {
        let handled = [analytics, notifications, inventory].map(Work::handled);
        println!("{what:<36}{:>10}{:>15}{:>11}", handled[0], handled[1], handled[2]);
    };
    println!("{:<36}{:>10}{:>15}{:>11}", "", "analytics", "notifications", "inventory");

    let shop = broker.events()?;
    place(&shop, topic, 0..12).await?;
    until(|| [analytics, notifications, inventory].iter().all(|work| work.handled() == 12)).await?;
    row("12 orders placed");

    notifications.set_provider_down(true);
    place(&shop, topic, 12..24).await?;
    let others_are_done = || analytics.handled() == 24 && inventory.handled() == 24;
    until(|| others_are_done() && notifications.refused() > 0).await?;
    row("12 more; the mail provider is down");

    notifications.set_provider_down(false);
    until(|| notifications.handled() == 24).await?;
    row("the mail provider is back");

    for service in services {
        service.stop().await?;
    }
    match service::replay(broker, topic, "inventory", &store, &run_name()).await? {
        Some(handled) => println!("{:<36}{handled:>36}", "inventory once more, as a replay"),
        None => println!("RabbitMQ keeps no log: what a service has acked is gone, and cannot be replayed."),
    }
    Ok(())
}

/// Publishes orders, each with an id that stays the same should it be sent again.
async fn place(shop: &DynPublisher, topic: &str, orders: Range<u32>) -> Result<(), BoxError> {
    let run = run_name();
    for nth in orders {
        let order = Message::builder()
            .payload(format!(r#"{{"order_id":"o-{nth}"}}"#))
            .key(format!("o-{nth}"))
            .id(format!("{run}-{nth}"))
            .build();
        shop.publish(Outgoing::new(topic, order)).await?;
    }
    Ok(())
}

/// Tells this run from earlier ones on the same servers.
fn run_name() -> String {
    format!("run-{}", std::process::id())
}

async fn until(condition: impl Fn() -> bool) -> Result<(), BoxError> {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.map_err(|_| "the services do not get on".into())
}
