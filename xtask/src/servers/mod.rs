//! Real servers on loopback: Redis (single, Cluster, Sentinel, TLS), Apache Kafka, RabbitMQ and PostgreSQL.
//!
//! Every server listens on 127.0.0.1 only, on free ports, keeps its files in a temporary folder of its own, is killed
//! when dropped, and is killed by the kernel when the process that started it dies, however it dies.
//!
//! All calls block. In an async test a call may take seconds (Kafka's and RabbitMQ's starts take about five), so use a
//! multi-threaded runtime or `spawn_blocking` where other tasks must go on meanwhile.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use xtask::servers::Redis;
//!
//! let redis = Redis::builder().option("maxmemory-policy", "allkeys-lru").start()?;
//! assert_eq!(redis.cli(&["SET", "greeting", "hello"])?, "OK");
//! redis.kill();
//! redis.start_again()?;                                   // same port; the data is gone
//! assert_eq!(redis.cli(&["GET", "greeting"])?, "");
//! # Ok(()) }
//! ```

mod certificates;
mod error;
mod jars;
mod kafka;
mod ports;
mod postgres;
mod process;
mod rabbitmq;
mod redis;
mod scratch;
mod shared;

pub use self::certificates::{Certificates, ServerCertificate};
pub use self::error::ServerError;
pub use self::jars::{KAFKA_VERSION, kafka_libs};
pub use self::kafka::{Kafka, KafkaBuilder};
pub use self::ports::free_port;
pub use self::postgres::{Postgres, PostgresBuilder};
pub use self::rabbitmq::{RabbitMq, RabbitMqBuilder};
pub use self::redis::{Redis, RedisBuilder, RedisCluster, RedisSentinel};
pub use self::scratch::remove_abandoned;
pub use self::shared::{
    KAFKA_VARIABLE, POSTGRES_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE, shared_kafka, shared_postgres,
    shared_rabbitmq, shared_redis,
};
