//! On a real Kafka, RabbitMQ, Redis and PostgreSQL: beside what people write by hand, and beside the limit.

mod amqp;
mod backlog;
mod dead_letters;
pub(crate) mod endurance;
mod inbox;
mod limit;
mod naive;
mod ours;
mod raw;
mod redis_server;
mod relay;
mod store;
mod throughput;
mod topic;
mod workers;

use std::error::Error;

pub(crate) use amqp::consume_backlog as consume_queue;
pub(crate) use backlog::consume as consume_backlog;
use redis_server::RedisServer;
use tokio::runtime::Runtime;

use crate::report::Report;

/// What goes wrong ends the bench: a figure of half a run is worth nothing.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Where the servers are.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) kafka: String,
    pub(crate) amqp: String,
    pub(crate) redis: String,
    pub(crate) postgres: String,
}

pub(crate) fn run(report: &mut Report, servers: &Servers) -> Fallible<()> {
    // The default of a service: a worker for each core.
    let runtime = Runtime::new()?;
    let mut redis = RedisServer::connect(&servers.redis)?;
    if report.wants("kafka") {
        throughput::measure(report, servers, &runtime, &mut redis)?;
    }
    if report.wants("redis") {
        store::measure(report, servers, &runtime, &mut redis)?;
    }
    if report.wants("backlog") {
        backlog::measure(report, servers, &runtime, &mut redis)?;
    }
    if report.wants("dead letters") {
        runtime.block_on(dead_letters::measure(report, servers))?;
    }
    if report.wants("relay") {
        runtime.block_on(relay::measure(report, servers))?;
    }
    if report.wants("inbox") {
        runtime.block_on(inbox::measure(report, servers))?;
    }
    if report.wants("remembered") {
        runtime.block_on(inbox::remembered(report, servers))?;
    }
    amqp::measure(report, servers, &runtime, &mut redis)?;
    Ok(())
}
