//! Brokers and stores by URL: the only place that knows which there are.
//!
//! What can be found without the network is found by the call, the rest by its future. No error repeats a URL, since
//! it may hold a password.

use std::{future::Future, pin::Pin};

use consumer::{BoxSource, DynPublisher, dedup::DynStore, memory::MemoryStore};

#[cfg(feature = "amqp")]
use crate::amqp;
#[cfg(feature = "kafka")]
use crate::kafka;
use crate::{
    cli::{Broker, Consume},
    stop::Stop,
};

/// A connection that will be made when it is polled.
pub(crate) type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Stop>>>>;

/// Where orders come from and where dead letters go. The topics or queues are looked for.
pub(crate) fn consumer(options: &Consume) -> Result<Connecting<(BoxSource, DynPublisher)>, Stop> {
    let url = &*options.broker.url;
    match scheme(url) {
        #[cfg(feature = "kafka")]
        Some("kafka" | "kafka+tls") => Ok(Box::pin(kafka::Consumer::new(url, options)?.connect())),
        #[cfg(feature = "amqp")]
        Some("amqp" | "amqps") => Ok(Box::pin(amqp::Consumer::new(url, options)?.connect())),
        scheme => Err(no_broker(scheme, "consume")),
    }
}

/// A publisher to a topic or queue, which is created if it is missing.
pub(crate) fn publisher(broker: &Broker) -> Result<Connecting<DynPublisher>, Stop> {
    let url = &*broker.url;
    match scheme(url) {
        #[cfg(feature = "kafka")]
        Some("kafka" | "kafka+tls") => Ok(Box::pin(kafka::Producer::new(url, &broker.topic)?.connect())),
        #[cfg(feature = "amqp")]
        Some("amqp" | "amqps") => {
            Ok(Box::pin(amqp::Producer::new(url, &broker.topic, &broker.dead_letter())?.connect()))
        }
        scheme => Err(no_broker(scheme, "produce")),
    }
}

/// Where ids are remembered.
pub(crate) fn store(url: &str) -> Result<Connecting<DynStore>, Stop> {
    if url.starts_with("sqlite:") {
        #[cfg(feature = "sqlite")]
        return sqlite(url);
        #[cfg(not(feature = "sqlite"))]
        return Err(missing("sqlite"));
    }
    match scheme(url) {
        Some("memory") => Ok(Box::pin(async { Ok(DynStore::new(MemoryStore::new())) })),
        Some(
            "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster",
        ) => {
            #[cfg(feature = "redis")]
            return redis(url);
            #[cfg(not(feature = "redis"))]
            return Err(missing("redis"));
        }
        Some("postgres" | "postgresql") => {
            #[cfg(feature = "postgres")]
            return postgres(url);
            #[cfg(not(feature = "postgres"))]
            return Err(missing("postgres"));
        }
        scheme => Err(unknown("store", scheme, "redis://, rediss://, postgres://, sqlite:FILE and memory:")),
    }
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Result<Connecting<DynStore>, Stop> {
    let builder = consumer::redis::RedisStore::builder(url);
    builder.check().map_err(|error| Stop::usage(Stop::from_error(&error).to_string()))?;
    Ok(Box::pin(async move {
        let store = builder.connect().await.map_err(|error| Stop::from_error(&error))?;
        Ok(DynStore::new(store))
    }))
}

#[cfg(feature = "postgres")]
fn postgres(url: &str) -> Result<Connecting<DynStore>, Stop> {
    let builder = consumer::sql::PostgresStore::builder(url);
    builder.check().map_err(|error| Stop::usage(Stop::from_error(&error).to_string()))?;
    Ok(Box::pin(async move {
        let store = builder.connect().await.map_err(|error| Stop::from_error(&error))?;
        Ok(DynStore::new(store))
    }))
}

#[cfg(feature = "sqlite")]
fn sqlite(url: &str) -> Result<Connecting<DynStore>, Stop> {
    let builder = consumer::sql::SqliteStore::builder(url);
    builder.check().map_err(|error| Stop::usage(Stop::from_error(&error).to_string()))?;
    Ok(Box::pin(async move {
        let store = builder.open().await.map_err(|error| Stop::from_error(&error))?;
        Ok(DynStore::new(store))
    }))
}

/// Why there is no broker behind a URL.
fn no_broker(scheme: Option<&str>, command: &str) -> Stop {
    match scheme {
        Some("memory") => Stop::usage(format!(
            "the broker `memory:` lives in one process, so there is nothing that `orders {command}` could share with \
             another one: name a broker by --broker kafka://host:port or --broker amqp://user:password@host:port, or run \
             `orders` alone for the demo in memory"
        )),
        Some("kafka" | "kafka+tls") => missing("kafka"),
        Some("amqp" | "amqps") => missing("amqp"),
        scheme => unknown("broker", scheme, "kafka://, kafka+tls://, amqp://, amqps:// and memory:"),
    }
}

fn missing(feature: &str) -> Stop {
    // With what it was built with, so that the command can be taken as it is.
    let redis = cfg!(feature = "redis") || !["postgres", "sqlite"].contains(&feature);
    let others = [
        ("kafka", cfg!(feature = "kafka")),
        ("amqp", cfg!(feature = "amqp")),
        ("redis", redis),
        ("postgres", false),
        ("sqlite", false),
    ];
    let features: Vec<_> = others
        .into_iter()
        .filter(|(name, wanted)| *wanted || *name == feature)
        .map(|(name, _)| name)
        .collect();
    Stop::usage(format!(
        "this `orders` was built without the feature `{feature}`: enable it, as in \
         `cargo run -p orders --features {} -- …`",
        features.join(",")
    ))
}

fn unknown(what: &str, scheme: Option<&str>, known: &str) -> Stop {
    match scheme {
        Some(scheme) => Stop::usage(format!("{scheme}:// is no URL of a {what}: known are {known}")),
        None => Stop::usage(format!("the URL of the {what} has no scheme that is known: known are {known}")),
    }
}

/// The scheme; `memory:` has nothing behind it, all others go on with `//`.
fn scheme(url: &str) -> Option<&str> {
    if url == "memory:" {
        return Some("memory");
    }
    let (scheme, _) = url.split_once("://")?;
    // What stands in front of a mistyped URL may be a password: it is only shown if it looks like a scheme.
    let legal = |c: char| c.is_ascii_lowercase() || c == '+';
    (scheme.len() <= 16 && scheme.chars().all(legal) && scheme != "memory").then_some(scheme)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn refusal<T>(result: Result<T, Stop>) -> String {
        match result {
            Err(Stop::Usage(message)) => message,
            Err(Stop::Failed(message)) => panic!("not found without the network: {message}"),
            Ok(_) => panic!("taken"),
        }
    }

    fn broker(url: &str) -> Result<Connecting<DynPublisher>, Stop> {
        let arguments = ["orders", "produce", "--topic", "orders", "--broker", url];
        let Ok(Cli { command: Some(Command::Produce(options)) }) = Cli::try_parse_from(arguments) else {
            panic!("these are arguments of `produce`")
        };
        publisher(&options.broker)
    }

    #[test]
    fn a_broker_in_memory_cannot_be_shared() {
        assert!(refusal(broker("memory:")).contains("one process"));
        assert!(store("memory:").is_ok());
    }

    #[test]
    fn a_url_of_a_kind_that_is_not_known_is_refused_without_being_shown() {
        for url in ["http://ann:s3cret@h", "ann:s3cret@h", "s3cret://h", "", "memory", "memory://", "s3cret"]
        {
            for message in [refusal(broker(url)), refusal(store(url))] {
                assert!(message.contains("memory:") && !message.contains("s3cret"), "{message}");
            }
        }
        assert!(refusal(broker("http://h")).starts_with("http:// is no URL of a broker"));
        assert!(refusal(store("kafka://h")).starts_with("kafka:// is no URL of a store"));
    }

    #[test]
    fn a_url_whose_feature_is_missing_says_which() {
        if !cfg!(feature = "kafka") {
            assert!(refusal(broker("kafka://h:1")).contains("feature `kafka`"));
        }
        if !cfg!(feature = "amqp") {
            let refused = refusal(broker("amqps://guest:s3cret@h/%2f"));
            assert!(refused.contains("feature `amqp`") && refused.contains("amqp,redis"), "{refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
        let redis = store("redis+cluster://h:1");
        if cfg!(feature = "redis") {
            assert!(redis.is_ok());
        } else {
            assert!(refusal(redis).contains("feature `redis`"));
        }
        let postgres = store("postgres://ann:s3cret@h/x");
        if cfg!(feature = "postgres") {
            assert!(postgres.is_ok());
            let refused = refusal(store("postgres://ann:s3cret@h:port/x"));
            assert!(refused.contains("port") && !refused.contains("s3cret"), "{refused}");
        } else {
            let refused = refusal(postgres);
            assert!(refused.contains("feature `postgres`") && !refused.contains("s3cret"), "{refused}");
        }
    }
}
