//! The load: a process of its own, so that what the consumer has resident is the consumer's.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use consumer_amqp::AmqpPublisher;
use consumer_core::{DynPublisher, Outgoing};
use consumer_kafka::KafkaPublisher;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use super::{
    super::{Fallible, Servers, amqp::message, topic::original},
    Broker,
};

/// On their way at most.
const AT_ONCE: usize = 2_000;
const TICK: Duration = Duration::from_millis(20);

/// What to publish, and how fast.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    /// What the endurance run starts as a child: publishes to this topic or queue until its input is closed
    #[arg(long = "load", value_name = "NAME", hide = true)]
    pub(crate) target: Option<String>,
    /// Messages a second; 0 for as many as are confirmed
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub(crate) rate: u64,
    /// The number of the first message
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub(crate) first: usize,
}

/// The child: publishes until its input is closed, and says how many are confirmed.
pub(super) fn publish(servers: &Servers, broker: Broker, target: &str, load: &Load) -> Fallible<()> {
    let (input_closed, mut closed) = oneshot::channel();
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = input_closed.send(());
    });
    Runtime::new()?.block_on(async {
        let publisher = match broker {
            Broker::Kafka => DynPublisher::new(KafkaPublisher::builder(&servers.kafka).build()?),
            Broker::Amqp => DynPublisher::new(AmqpPublisher::builder(&servers.amqp).build()?),
        };
        let (mut next, mut confirmed, mut allowed) = (load.first, 0_u64, 0.0_f64);
        let mut confirms = FuturesUnordered::new();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut said = tokio::time::Instant::now();
        loop {
            tokio::select! {
                _ = &mut closed => break,
                _ = tick.tick() => allowed += load.rate as f64 * TICK.as_secs_f64(),
                Some(answer) = confirms.next() => { let () = answer?; confirmed += 1; }
            }
            while confirms.len() < AT_ONCE && (load.rate == 0 || allowed >= 1.0) {
                allowed -= 1.0;
                let outgoing = Outgoing::new(target, message(next));
                confirms.push(consumer_core::Publisher::publish(&publisher, outgoing));
                next += 1;
            }
            if said.elapsed() > Duration::from_secs(1) {
                said = tokio::time::Instant::now();
                println!("{confirmed}");
            }
        }
        while let Some(answer) = confirms.next().await {
            let () = answer?;
            confirmed += 1;
        }
        let unique = (load.first..next).filter(|n| original(*n) == *n || original(*n) < load.first).count();
        println!("{confirmed} {unique}");
        Ok(())
    })
}

/// The child as the parent sees it; killed on drop.
pub(super) struct Publishing {
    child: Child,
    input: Option<ChildStdin>,
    confirmed: Arc<AtomicU64>,
    reader: Option<thread::JoinHandle<u64>>,
}

impl Publishing {
    pub(super) fn start(
        servers: &Servers,
        broker: Broker,
        target: &str,
        rate: u64,
        first: usize,
    ) -> Fallible<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--kafka", &servers.kafka, "--amqp", &servers.amqp, "--redis", &servers.redis])
            .args(["--postgres", &servers.postgres, "--endurance", broker.name(), "--load", target])
            .args(["--rate", &rate.to_string(), "--first", &first.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no pipe to the load")?;
        let confirmed = Arc::new(AtomicU64::new(0));
        let seen = confirmed.clone();
        let reader = thread::spawn(move || {
            let mut unique = 0;
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut numbers = line.split(' ').map_while(|number| number.parse().ok());
                seen.store(numbers.next().unwrap_or_default(), Ordering::Relaxed);
                unique = numbers.next().unwrap_or_default();
            }
            unique
        });
        Ok(Self { input: child.stdin.take(), child, confirmed, reader: Some(reader) })
    }

    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Lets it end; how many were confirmed, and how many of them were no duplicates.
    pub(super) fn stop(mut self) -> Fallible<(u64, u64)> {
        drop(self.input.take());
        if !self.child.wait()?.success() {
            return Err("the load has failed".into());
        }
        let unique = self.reader.take().and_then(|reader| reader.join().ok()).ok_or("no count")?;
        Ok((self.confirmed(), unique))
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
