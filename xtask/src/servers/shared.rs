//! One Kafka, one RabbitMQ, one Redis and one PostgreSQL for all tests of a run.

use super::{Kafka, Postgres, RabbitMq, Redis};
use std::{env, sync::OnceLock};

/// Names the Kafka that `cargo xtask test` has started: `127.0.0.1:19092`.
pub const KAFKA_VARIABLE: &str = "CONSUMER_TEST_KAFKA";
/// Names the PostgreSQL that `cargo xtask test` has started: `postgres://postgres@127.0.0.1:15432/postgres`.
pub const POSTGRES_VARIABLE: &str = "CONSUMER_TEST_POSTGRES";
/// Names the RabbitMQ that `cargo xtask test` has started: `amqp://guest:guest@127.0.0.1:15672/%2f`.
pub const RABBITMQ_VARIABLE: &str = "CONSUMER_TEST_RABBITMQ";
/// Names the Redis that `cargo xtask test` has started: `redis://127.0.0.1:7000`.
pub const REDIS_VARIABLE: &str = "CONSUMER_TEST_REDIS";

/// The bootstrap address of a Kafka that tests share: the one named by [`KAFKA_VARIABLE`], else one started for this
/// process at the first call, so that `cargo test some_test -- --ignored` works by hand.
///
/// Use topic and group names of your own, and never stop it: for that a test starts its own [`Kafka`]. One started here
/// ends with the process; its temporary folder is removed by the next process that starts a server.
///
/// # Panics
/// When none is named and none can be started; the message has the reason.
pub fn shared_kafka() -> String {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    named(KAFKA_VARIABLE).unwrap_or_else(|| {
        let start = || Kafka::start().unwrap_or_else(|error| panic!("no Kafka for the tests: {error:?}"));
        KAFKA.get_or_init(start).bootstrap()
    })
}

/// The URL of a RabbitMQ that tests share: the one named by [`RABBITMQ_VARIABLE`], else one started for this process at
/// the first call.
///
/// Use exchange and queue names of your own, and never stop it: for that a test starts its own [`RabbitMq`]. Its end is
/// that of [`shared_kafka`].
///
/// # Panics
/// When none is named and none can be started; the message has the reason.
pub fn shared_rabbitmq() -> String {
    static RABBITMQ: OnceLock<RabbitMq> = OnceLock::new();
    named(RABBITMQ_VARIABLE).unwrap_or_else(|| {
        let start =
            || RabbitMq::start().unwrap_or_else(|error| panic!("no RabbitMQ for the tests: {error:?}"));
        RABBITMQ.get_or_init(start).url()
    })
}

/// The URL of a Redis that tests share: the one named by [`REDIS_VARIABLE`], else one started for this process at the
/// first call.
///
/// Use a scope or key prefix of your own, never `FLUSHALL`, and never stop it: for that a test starts its own [`Redis`].
/// Its end is that of [`shared_kafka`].
///
/// # Panics
/// When none is named and none can be started; the message has the reason.
pub fn shared_redis() -> String {
    static REDIS: OnceLock<Redis> = OnceLock::new();
    named(REDIS_VARIABLE).unwrap_or_else(|| {
        let start = || Redis::start().unwrap_or_else(|error| panic!("no Redis for the tests: {error:?}"));
        REDIS.get_or_init(start).url()
    })
}

/// The URL of a PostgreSQL that tests share: the one named by [`POSTGRES_VARIABLE`], else one started for this process at
/// the first call.
///
/// Use a schema of your own, and never stop it: for that a test starts its own [`Postgres`]. Its end is that of
/// [`shared_kafka`].
///
/// # Panics
/// When none is named and none can be started; the message has the reason.
pub fn shared_postgres() -> String {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    named(POSTGRES_VARIABLE).unwrap_or_else(|| {
        let start =
            || Postgres::start().unwrap_or_else(|error| panic!("no PostgreSQL for the tests: {error:?}"));
        POSTGRES.get_or_init(start).url()
    })
}

fn named(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}
