//! `cargo xtask services`: the servers of the tests, to work with by hand.

use crate::{interrupt::Interrupt, machine, stop::Stop};
use std::{
    panic,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};
use xtask::servers::{
    KAFKA_VARIABLE, Kafka, POSTGRES_VARIABLE, Postgres, RABBITMQ_VARIABLE, REDIS_VARIABLE, RabbitMq, Redis,
};

/// A Kafka, a RabbitMQ, a Redis and a PostgreSQL; stopped on drop.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) kafka: Kafka,
    pub(crate) rabbitmq: RabbitMq,
    pub(crate) redis: Redis,
    pub(crate) postgres: Postgres,
}

impl Services {
    pub(crate) fn start(interrupt: &Interrupt) -> Result<Self, Stop> {
        interrupt.check()?;
        // At the same time: Kafka and RabbitMQ need seconds each.
        let (kafka, rabbitmq, redis, postgres) = thread::scope(|scope| {
            // The benches let a backlog of a million messages pile up.
            let kafka = scope.spawn(|| Kafka::builder().heap_mib(768).start());
            let rabbitmq = scope.spawn(RabbitMq::start);
            let postgres = scope.spawn(Postgres::start);
            let redis = Redis::start();
            (joined(kafka), joined(rabbitmq), redis, joined(postgres))
        });
        interrupt.check()?;
        Ok(Self { kafka: kafka?, rabbitmq: rabbitmq?, redis: redis?, postgres: postgres? })
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// Starts all, says how to use them, and stays until a signal comes.
pub(crate) fn run(interrupt: &Interrupt) -> Result<(), Stop> {
    machine::prepare(&machine::SERVERS, interrupt)?;
    let services = Services::start(interrupt)?;
    let Services { kafka, rabbitmq, redis, postgres } = &services;
    println!("{}", usage(&kafka.bootstrap(), &rabbitmq.url(), &redis.url(), &postgres.url()));
    while !interrupt.wait(Duration::from_secs(1)) {
        let brokers = kafka.is_running() && rabbitmq.is_running();
        if !brokers || !redis.is_running() || !postgres.is_running() {
            return Err(Stop::failed("a server has ended by itself"));
        }
    }
    Ok(())
}

fn usage(kafka: &str, rabbitmq: &str, redis: &str, postgres: &str) -> String {
    let orders = "cargo run -p orders --features kafka,redis --";
    format!(
        "\
Kafka, RabbitMQ, Redis and PostgreSQL are running on 127.0.0.1, until Ctrl-C. In another terminal:

  export BROKER_URL=kafka://{kafka} STORE_URL={redis}
  export {KAFKA_VARIABLE}={kafka} {RABBITMQ_VARIABLE}={rabbitmq} {REDIS_VARIABLE}={redis} {POSTGRES_VARIABLE}={postgres}

The first line is for `orders`, the second for single tests. Or with everything spelled out:

  {orders} produce --broker kafka://{kafka} --topic orders.placed --count 1000 --duplicates 0.2
  {orders} consume --broker kafka://{kafka} --store {redis} --topic orders.placed --until-idle 10s

On RabbitMQ: `--features amqp,redis`, and either `--broker {rabbitmq}` or

  export BROKER_URL={rabbitmq} STORE_URL={redis}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_can_be_pasted() {
        let text = usage(
            "127.0.0.1:1",
            "amqp://guest:guest@127.0.0.1:3/%2f",
            "redis://127.0.0.1:2",
            "postgres://postgres@127.0.0.1:4/postgres",
        );
        assert!(
            text.contains("export BROKER_URL=kafka://127.0.0.1:1 STORE_URL=redis://127.0.0.1:2\n"),
            "{text}"
        );
        assert!(text.contains("--broker kafka://127.0.0.1:1 --store redis://127.0.0.1:2"), "{text}");
        assert!(text.contains("--broker amqp://guest:guest@127.0.0.1:3/%2f"), "{text}");
        assert!(text.contains("CONSUMER_TEST_RABBITMQ=amqp://guest:guest@127.0.0.1:3/%2f "), "{text}");
        assert!(text.contains("CONSUMER_TEST_POSTGRES=postgres://postgres@127.0.0.1:4/postgres\n"), "{text}");
    }
}
