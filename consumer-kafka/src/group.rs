//! A consumer joins its group, and leaves it.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

use crate::{
    commit::Committer,
    config::Connection,
    error::{KafkaError, Kind},
    rebalance::Callbacks,
    retry::create::create_missing,
    start,
};

/// How long leaving the group may take before the close stops waiting for it.
const LEAVE: Duration = Duration::from_secs(10);

pub(crate) type Joined = (Arc<BaseConsumer<Callbacks>>, Committer);

/// Checks the topics and joins; what cannot be joined is left.
pub(crate) fn join(
    config: &ClientConfig,
    connection: &Connection,
    callbacks: Callbacks,
) -> Result<Joined, KafkaError> {
    let consumer: BaseConsumer<Callbacks> =
        config.create_with_context(callbacks).map_err(KafkaError::from_config)?;
    let consumer = Arc::new(consumer);
    match start(&consumer, connection) {
        Ok(committer) => Ok((consumer, committer)),
        Err(error) => {
            leave(consumer, None);
            Err(error)
        }
    }
}

/// Checks the topics and joins the group.
fn start(consumer: &Arc<BaseConsumer<Callbacks>>, connection: &Connection) -> Result<Committer, KafkaError> {
    let callbacks = consumer.context().clone();
    let options = &callbacks.options;
    start::check_topics(consumer, &callbacks, options.topics.iter().map(String::as_str))?;
    create_missing(connection, options)?;
    start::check_topics(consumer, &callbacks, options.retry.names())?;
    start::find_left_over(consumer, &options.topics, &options.retry);
    let left_over = options.retry.left_over().iter().map(|topic| &*topic.name);
    let topics: Vec<&str> =
        options.topics.iter().map(String::as_str).chain(options.retry.names()).chain(left_over).collect();
    tracing::info!(
        brokers = callbacks.brokers,
        group = options.scope(),
        ?topics,
        start = ?options.start,
        "kafka source starts; the start position applies to partitions without a committed offset"
    );
    match &options.replay {
        Some(name) => {
            tracing::info!(replay = name, "this is a replay: effects happen again, under its own dedup scope")
        }
        None => tracing::info!(
            "to consume again what the group has consumed takes a replay with a name: without one nothing happens \
             again within the retention of the dedup store"
        ),
    }
    consumer.subscribe(&topics).map_err(|error| {
        let brokers = &callbacks.brokers;
        KafkaError::new(Kind::Other, format!("kafka at {brokers} refused the subscription: {error}"))
    })?;
    Committer::start(Arc::downgrade(consumer), thread::current())
        .map_err(|error| KafkaError::new(Kind::Other, "a thread cannot be started").with_source(error))
}

/// Leaves the group, which blocks; a broker that hangs must not hold the close for ever. Whether it was done in time.
pub(crate) fn leave(consumer: Arc<BaseConsumer<Callbacks>>, committer: Option<Committer>) -> bool {
    let (done, left) = mpsc::channel();
    let leave = move || {
        if let Some(committer) = committer {
            committer.end();
        }
        // After a fatal error the driver does not leave the group, and never says that it has.
        let leaves = consumer.close_queue().is_ok();
        // The driver waits for ever, at its end, for messages that nobody took from its queue.
        let mut idle = 0;
        while idle < 2 {
            let polled = consumer.poll(Duration::from_millis(10)).is_some();
            idle = if polled || leaves && !consumer.closed() { 0 } else { idle + 1 };
        }
        let _ = done.send(());
        drop(consumer);
    };
    let spawned = thread::Builder::new().name("kafka-leave".to_owned()).spawn(leave);
    spawned.is_ok() && left.recv_timeout(LEAVE).is_ok()
}
