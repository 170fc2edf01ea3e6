//! On a real RabbitMQ and a real Redis. Consuming empties a queue, so everybody has queues of their own, filled alike.

mod backlog;
mod naive;
mod publish;
mod queue;
mod raw;
mod workers;

use consumer_amqp::AmqpSource;
use tokio::runtime::Runtime;

pub(crate) use self::backlog::consume as consume_backlog;
use self::queue::Filled;
pub(super) use self::queue::message;
use super::{Fallible, Servers, ours, redis_server::RedisServer};
use crate::{
    report::{Report, Row},
    rounds::median,
};

const MESSAGES: usize = 40_000;
/// The slow ones get fewer.
const FOR_NAIVE: usize = 6_000;
const ROUNDS: usize = 3;
/// The default of a consumer, and so of the prefetch.
const IN_FLIGHT: usize = 256;
/// The fast mode of the runtime, beside a task for each message.
const LANES: usize = 2;
/// What those written by hand have unacked at most: as much as a quorum queue gives. Ours has its default.
const PREFETCH: u16 = 2_000;

pub(super) fn measure(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    if report.wants("rabbitmq") {
        consuming(report, servers, runtime, redis)?;
    }
    if report.wants("publish") {
        runtime.block_on(publish::measure(report, &servers.amqp))?;
    }
    if report.wants("backlog") {
        backlog::measure(report, servers, runtime, redis)?;
    }
    Ok(())
}

fn consuming(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    let rates = || Vec::<f64>::new();
    let (mut each, mut hundred, mut naive, mut workers) = (rates(), rates(), rates(), rates());
    let (mut default, mut fast) = (rates(), rates());
    let mut extra = 0;
    for round in 0..ROUNDS {
        let fill = |who: &str, messages| {
            runtime.block_on(Filled::new(&servers.amqp, &format!("{who}-{round}"), messages))
        };
        let queue = fill("each", MESSAGES)?;
        each.push(runtime.block_on(raw::run(&servers.amqp, queue, 1))?);
        let queue = fill("hundred", MESSAGES)?;
        hundred.push(runtime.block_on(raw::run(&servers.amqp, queue, 100))?);
        redis.reset()?;
        let queue = fill("naive", FOR_NAIVE)?;
        naive.push(runtime.block_on(naive::run(servers, queue))?);
        redis.reset()?;
        let queue = fill("workers", MESSAGES)?;
        let ran = runtime.block_on(workers::run(servers, queue))?;
        workers.push(ran.rate);
        extra += ran.extra;
        for (lanes, rates) in [(None, &mut default), (Some(LANES), &mut fast)] {
            redis.reset()?;
            let queue = fill("ours", MESSAGES)?;
            let source = AmqpSource::builder(&servers.amqp).queue(queue.name.as_str()).build()?;
            let ran = runtime.block_on(ours::drive(servers, source, MESSAGES, IN_FLIGHT, lanes))?;
            if ran.run.processed != queue.unique as u64 {
                return Err(
                    format!("{} effects of {} unique messages", ran.run.processed, queue.unique).into()
                );
            }
            rates.push(ran.rate);
        }
    }
    let [each, hundred, naive, workers] = [each, hundred, naive, workers].map(median);
    for (name, ours) in [("as it is", median(default)), ("in 2 lanes", median(fast))] {
        let row = |against: &str, rate| {
            Row::new(format!("rabbitmq + redis, 256 in flight, {name}"), ours, "messages/s")
                .against(against, rate)
        };
        report.add(row("raw lapin, each ack awaited", each).ratio_at_least(2.0));
        report.add(row("raw lapin, an ack every 100", hundred).ratio_at_least(0.4));
        report.add(row("naive, one at a time", naive).ratio_at_least(6.0));
        report.add(row("64 workers by key", workers).ratio_at_least(1.2));
    }
    report.add(Row::new("extra handler runs, rabbitmq + redis", 0.0, "runs").at_most(0.0));
    report.add(Row::new("extra handler runs, 64 workers by key", extra as f64 / ROUNDS as f64, "runs"));
    Ok(())
}
