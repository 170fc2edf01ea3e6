//! Resident memory of a consumer in front of a long queue: the prefetch bounds it.

use consumer_amqp::AmqpSource;
use consumer_core::Consumer;
use dedup_redis::RedisStore;
use tokio::runtime::Runtime;

use super::{
    super::{
        Fallible, Servers,
        backlog::{slow_handler, watch},
        redis_server::RedisServer,
    },
    queue::Filled,
};
use crate::{
    in_process::full_stack_around,
    report::{Report, Row},
};

const MESSAGES: usize = 200_000;

pub(super) fn measure(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    let queue = runtime.block_on(Filled::new(&servers.amqp, "backlog", MESSAGES))?;
    redis.reset()?;
    let mib = watch(servers, &["--consume-queue", &queue.name])?;
    report.add(Row::new("resident memory, queue of 200,000, rabbitmq", mib, "MiB").at_most(60.0));
    Ok(())
}

/// The child: consumes slowly until it is killed.
pub(crate) fn consume(servers: &Servers, queue: &str) -> Fallible<()> {
    Runtime::new()?.block_on(async {
        let store = RedisStore::connect(servers.redis.as_str()).await?;
        let source = AmqpSource::builder(&servers.amqp).queue(queue).build()?;
        tokio::spawn(Consumer::new(source, full_stack_around(slow_handler(), store)).run()).await??;
        Ok(())
    })
}
