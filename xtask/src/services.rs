//! `cargo xtask services`: the servers of the tests, to work with by hand.

use crate::{interrupt::Interrupt, machine, stop::Stop};
use std::time::Duration;
use xtask::servers::{KAFKA_VARIABLE, Kafka, REDIS_VARIABLE, Redis};

/// A Kafka and a Redis; stopped on drop.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) kafka: Kafka,
    pub(crate) redis: Redis,
}

impl Services {
    pub(crate) fn start(interrupt: &Interrupt) -> Result<Self, Stop> {
        interrupt.check()?;
        let redis = Redis::start()?;
        // The benches let a backlog of a million messages pile up.
        let kafka = Kafka::builder().heap_mib(768).start()?;
        interrupt.check()?;
        Ok(Self { kafka, redis })
    }
}

/// Starts both, says how to use them, and stays until a signal comes.
pub(crate) fn run(interrupt: &Interrupt) -> Result<(), Stop> {
    machine::prepare(&machine::SERVERS, interrupt)?;
    let services = Services::start(interrupt)?;
    println!("{}", usage(&services.kafka.bootstrap(), &services.redis.url()));
    while !interrupt.wait(Duration::from_secs(1)) {
        if !services.kafka.is_running() || !services.redis.is_running() {
            return Err(Stop::failed("a server has ended by itself"));
        }
    }
    Ok(())
}

fn usage(kafka: &str, redis: &str) -> String {
    let orders = "cargo run -p orders --features kafka,redis --";
    format!(
        "\
Kafka and Redis are running on 127.0.0.1, until Ctrl-C. In another terminal:

  export BROKER_URL=kafka://{kafka} STORE_URL={redis}
  export {KAFKA_VARIABLE}={kafka} {REDIS_VARIABLE}={redis}

The first line is for `orders`, the second for single tests. Or with everything spelled out:

  {orders} produce --broker kafka://{kafka} --topic orders.placed --count 1000 --duplicates 0.2
  {orders} consume --broker kafka://{kafka} --store {redis} --topic orders.placed --until-idle 10s
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_can_be_pasted() {
        let text = usage("127.0.0.1:1", "redis://127.0.0.1:2");
        assert!(
            text.contains("export BROKER_URL=kafka://127.0.0.1:1 STORE_URL=redis://127.0.0.1:2\n"),
            "{text}"
        );
        assert!(text.contains("--broker kafka://127.0.0.1:1 --store redis://127.0.0.1:2"), "{text}");
    }
}
