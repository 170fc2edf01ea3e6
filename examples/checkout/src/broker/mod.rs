//! The broker by URL. The rest of the program knows a [`DynPublisher`] and nothing else.

use std::{future::Future, pin::Pin, time::Duration};

use consumer::{BoxError, DynPublisher, memory::MemoryBroker};

/// Looks for the broker and creates the queue or topic if it is missing.
pub(crate) type Connecting = Pin<Box<dyn Future<Output = Result<DynPublisher, BoxError>> + Send>>;

/// What is wrong with the URL is found by the call, the rest by its future. `confirm` bounds a publish: what was not
/// confirmed by then is not sent any more, as far as the broker's client can help it.
pub(crate) fn by_url(url: &str, queue: &str, confirm: Duration) -> Result<Connecting, BoxError> {
    match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "memory" => Ok(memory(queue)),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => kafka(url, queue, confirm),
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => rabbitmq(url, queue, confirm),
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafka+tls" => Err(missing("kafka", confirm)),
        #[cfg(not(feature = "amqp"))]
        "amqp" | "amqps" => Err(missing("amqp", confirm)),
        // Not shown: a mistyped URL may begin with a password.
        _ => Err("the broker's URL begins with memory:, kafka:// or amqp://".into()),
    }
}

#[cfg(not(all(feature = "kafka", feature = "amqp")))]
fn missing(feature: &str, _: Duration) -> BoxError {
    format!("this URL needs `cargo run -p checkout --features {feature}`").into()
}

fn memory(queue: &str) -> Connecting {
    let broker = MemoryBroker::new();
    broker.create_topic(queue, 1);
    eprintln!("events go to memory, where nobody reads them: name a broker by --broker");
    Box::pin(async move { Ok(DynPublisher::new(broker.publisher())) })
}

#[cfg(feature = "kafka")]
fn kafka(url: &str, topic: &str, confirm: Duration) -> Result<Connecting, BoxError> {
    use consumer::kafka::{KafkaAdmin, KafkaPublisher};
    let confirm = confirm.as_millis().to_string();
    let publisher = KafkaPublisher::from_url(url).property("delivery.timeout.ms", confirm).build()?;
    let admin = KafkaAdmin::from_url(url)?;
    let topic = topic.to_owned();
    Ok(Box::pin(async move {
        admin.ensure_topic(&topic, 4, &[]).await?;
        Ok(DynPublisher::new(publisher))
    }))
}

#[cfg(feature = "amqp")]
fn rabbitmq(url: &str, queue: &str, confirm: Duration) -> Result<Connecting, BoxError> {
    use consumer::amqp::{AmqpAdmin, AmqpPublisher, Queue};
    let publisher = AmqpPublisher::builder(url).timeout(confirm).build()?;
    let admin = AmqpAdmin::new(url)?;
    let queue = Queue::quorum(queue);
    Ok(Box::pin(async move {
        admin.ensure_queue_or_foreign(queue).await?;
        Ok(DynPublisher::new(publisher))
    }))
}
