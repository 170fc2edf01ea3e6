//! Resident memory of a consumer in front of a million messages.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use consumer_core::{Consumer, Failure, Message};
use consumer_kafka::KafkaSource;
use dedup_redis::RedisStore;
use tokio::runtime::Runtime;
use tower::Service;

use super::{Fallible, Servers, redis_server::RedisServer, topic::Topic};
use crate::{
    in_process::full_stack_around,
    report::{Report, Row},
};

const MESSAGES: usize = 1_000_000;
const WATCHED: Duration = Duration::from_secs(8);
const HANDLER: Duration = Duration::from_millis(20);

pub(super) fn measure(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    let topic = runtime.block_on(Topic::fill(&servers.kafka, "backlog", MESSAGES))?;
    redis.reset()?;
    let mib = watch(servers, &["--consume-backlog", &topic.name])?;
    report.add(Row::new("resident memory, backlog of 1,000,000", mib, "MiB").at_most(150.0));
    Ok(())
}

/// The most that a child has resident which consumes as `arguments` say, in MiB.
pub(super) fn watch(servers: &Servers, arguments: &[&str]) -> Fallible<f64> {
    let mut child = Slow(
        Command::new(std::env::current_exe()?)
            .args(["--kafka", &servers.kafka, "--amqp", &servers.amqp, "--redis", &servers.redis])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let output = child.0.stdout.take().ok_or("no pipe to the child")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() != STARTED {
        return Err("the consumer of the backlog did not start".into());
    }
    let until = Instant::now() + WATCHED;
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(resident(child.0.id())?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(most as f64 / 1024.0)
}

/// Printed by the child with the first message.
const STARTED: &str = "started";

/// The child: consumes slowly until it is killed.
pub(crate) fn consume(servers: &Servers, topic: &str) -> Fallible<()> {
    Runtime::new()?.block_on(async {
        let store = RedisStore::connect(servers.redis.as_str()).await?;
        let group = format!("{topic}-slow");
        let source = KafkaSource::builder(&servers.kafka).group(group).topic(topic).build()?;
        tokio::spawn(Consumer::new(source, full_stack_around(slow_handler(), store)).run()).await??;
        Ok(())
    })
}

/// Takes its time, and says when it begins.
pub(super) fn slow_handler()
-> impl Service<Message, Response = (), Error = Failure, Future: Send> + Clone + Send + Sync + 'static {
    static FIRST: AtomicBool = AtomicBool::new(true);
    tower::service_fn(|_: Message| async {
        if FIRST.swap(false, Ordering::Relaxed) {
            println!("{STARTED}");
        }
        tokio::time::sleep(HANDLER).await;
        Ok::<(), Failure>(())
    })
}

/// Kilobytes.
fn resident(process: u32) -> Fallible<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(value.ok_or("the consumer has ended")?.trim().trim_end_matches(" kB").parse()?)
}

/// A child that does not outlive the measurement.
struct Slow(Child);

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
