//! The README's consumer on RabbitMQ: its code with the lines of "Changing the broker" exchanged, which a test compares.

use std::time::Duration;

use consumer::{
    CatchPanicLayer, Consumer, DeadLetterLayer, DedupLayer, Failure, IdempotencyKey, RateLimitLayer,
    RetryLayer, TimeoutLayer, TraceLayer,
    handler::{Json, State, handler},
    redis::RedisStore,
    runtime::signal,
};
use serde::Deserialize;
use tower::ServiceBuilder;

#[derive(Deserialize)]
struct OrderPlaced {
    order_id: String,
    email: String,
}

#[derive(Clone)]
struct Mailer; // yours

impl Mailer {
    async fn send(&self, to: &str, order: &str) -> std::io::Result<()> {
        println!("to {to}: order {order} is confirmed");
        Ok(())
    }
}

async fn confirm(Json(order): Json<OrderPlaced>, State(mailer): State<Mailer>) -> Result<(), Failure> {
    mailer.send(&order.email, &order.order_id).await?; // any error is transient unless said otherwise
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = consumer::amqp::AmqpSource::builder("amqp://guest:guest@localhost:5672/%2f")
        .queue("orders.placed")
        .build()?;
    let dead = source.publisher()?; // same connection settings
    let store = RedisStore::connect("redis://localhost:6379").await?;

    let stack = ServiceBuilder::new() // plain tower: third-party layers fit in anywhere
        .layer(TraceLayer::new())
        .layer(DeadLetterLayer::new(dead, "orders.placed.dead"))
        .layer(
            DedupLayer::new(store, "order-mails")
                .key(IdempotencyKey::header("message-id"))
                .retention(Duration::from_hours(24)),
        )
        .layer(RetryLayer::exponential(Duration::from_secs(1)).max_attempts(3))
        .layer(RateLimitLayer::per_second(100))
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(CatchPanicLayer::new())
        .service(handler(confirm).with_state(Mailer));

    let report = Consumer::new(source, stack).max_in_flight(256).shutdown(signal::terminate()).run().await?;
    println!("{report}");
    Ok(())
}
