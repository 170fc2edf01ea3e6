//! `orders produce`: publishes a mixture of good and bad orders.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
};

use consumer::{DynPublisher, Outgoing, Publisher};

use crate::{
    backend, block_on,
    cli::Produce,
    logs,
    plan::{Mixture, Planned},
    report,
    stop::{Stop, chain},
};

/// Publishes that wait for their confirms.
const IN_FLIGHT: usize = 1000;

pub(crate) fn run(options: &Produce) -> Result<(), Stop> {
    let topic = &*options.broker.topic;
    let connecting = backend::publisher(&options.broker)?;
    let fractions = [options.duplicates, options.undecodable, options.flaky, options.bouncing];
    let mixture = Mixture::new(options.count, fractions)?;
    let seed = options.seed.unwrap_or_else(|| {
        let seed = RandomState::new().hash_one(0);
        eprintln!("seed {seed}");
        seed
    });
    logs::start("warn");
    block_on(async {
        let publisher = connecting.await?;
        publish(&publisher, topic, mixture.messages(seed)).await
    })?;
    println!("{}", report::produced(&mixture));
    Ok(())
}

/// Publishes all and waits for every confirm.
pub(crate) async fn publish(
    publisher: &DynPublisher,
    topic: &str,
    messages: impl Iterator<Item = Planned>,
) -> Result<(), Stop> {
    let topic: std::sync::Arc<str> = topic.into();
    let mut confirmed = 0_u64;
    let mut waiting = VecDeque::with_capacity(IN_FLIGHT);
    let mut messages = messages.map(|planned| Outgoing::new(topic.clone(), planned.message()));
    loop {
        let next = messages.next();
        let more = next.is_some();
        // Enqueued by the call, in this order.
        waiting.extend(next.map(|outgoing| Box::pin(publisher.publish(outgoing))));
        if waiting.len() < IN_FLIGHT && more {
            continue;
        }
        let Some(oldest) = waiting.pop_front() else { return Ok(()) };
        oldest.await.map_err(|error| {
            Stop::failed(format!("{}; {confirmed} messages were confirmed before", chain(&error)))
        })?;
        confirmed += 1;
    }
}
