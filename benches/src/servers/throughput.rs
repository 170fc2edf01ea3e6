//! Messages a second, everybody on the same topic.

use tokio::runtime::Runtime;

use super::{Fallible, Servers, limit, naive, ours, raw, redis_server::RedisServer, topic::Topic, workers};
use crate::{
    report::{Report, Row},
    rounds::median,
};

const MESSAGES: usize = 150_000;
/// The slow ones get fewer messages of the same topic.
const FOR_NAIVE: usize = 15_000;
const FOR_WORKERS: usize = 75_000;
const ROUNDS: usize = 3;

/// The rates of one contestant.
type Rates = Vec<f64>;

pub(super) fn measure(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    let topic = runtime.block_on(Topic::fill(&servers.kafka, "orders", MESSAGES))?;
    let (mut a, mut b, mut c, mut d) = (Rates::new(), Rates::new(), Rates::new(), Rates::new());
    let (mut few, mut many, mut duplicates) = (Rates::new(), Rates::new(), Rates::new());
    let mut costs = None;
    for round in 0..ROUNDS {
        let group = |who: &str| format!("{}-{who}-{round}", topic.name);
        a.push(raw::run(&servers.kafka, &topic, &group("raw"))?);
        redis.reset()?;
        b.push(runtime.block_on(naive::run(servers, &topic, &group("naive"), FOR_NAIVE))?);
        redis.reset()?;
        let ran = runtime.block_on(ours::run(servers, &topic, &group("few"), 256))?;
        check(&topic, ran.run.processed)?;
        let calls = redis.calls()?;
        few.push(ran.rate);
        costs = Some((ran, calls));
        duplicates.push(runtime.block_on(ours::run(servers, &topic, &group("again"), 256))?.rate);
        redis.reset()?;
        d.push(runtime.block_on(workers::run(servers, &topic, &group("workers"), FOR_WORKERS))?);
        redis.reset()?;
        many.push(runtime.block_on(ours::run(servers, &topic, &group("many"), 1024))?.rate);
        redis.reset()?;
        c.push(limit::run(servers)?);
    }
    let [a, b, c, d, few, many, duplicates] = [a, b, c, d, few, many, duplicates].map(median);
    for (name, ours) in [("256 in flight", few), ("1024 in flight", many)] {
        let row = |against: &str, rate| {
            Row::new(format!("kafka + redis, {name}"), ours, "messages/s").against(against, rate)
        };
        report.add(row("(a) raw BaseConsumer, no dedup", a));
        report.add(row("(b) naive, one at a time", b).ratio_at_least(10.0));
        report.add(row("(d) 64 workers by key", d).ratio_at_least(1.5));
        report.add(row("(c) redis-benchmark, -P 50", c).ratio_at_least(0.4));
    }
    let row = Row::new("kafka + redis, duplicates only", duplicates, "messages/s");
    report.add(row.against("10 % duplicates", few));
    if let Some((ran, calls)) = costs {
        let fresh = topic.unique as f64;
        let messages = topic.messages as f64;
        let repeated = messages - fresh;
        let calls_of = |name: &str| calls.get(name).copied().unwrap_or(0) as f64;
        let native = (calls_of("set") - repeated) / fresh;
        report.add(Row::new("native redis commands per fresh message", native, "commands").at_most(2.0));
        let scripts = (calls_of("evalsha") + calls_of("eval")) / messages;
        report.add(Row::new("redis scripts per message", scripts, "scripts").at_most(0.001));
        let sent = (ran.commands as f64 - repeated) / fresh;
        report.add(Row::new("all commands sent per fresh message", sent, "commands"));
        let trips = ran.round_trips as f64 / messages;
        report.add(Row::new("round trips per message, 256 in flight", trips, "round trips").at_most(0.05));
    }
    Ok(())
}

/// Each effect once, or the rate is that of something else.
fn check(topic: &Topic, processed: u64) -> Fallible<()> {
    if processed == topic.unique as u64 {
        return Ok(());
    }
    Err(format!("{processed} messages were processed, of {} unique ones", topic.unique).into())
}
