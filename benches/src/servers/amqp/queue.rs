//! Quorum queues full of orders.

use consumer_amqp::{AmqpAdmin, AmqpPublisher, Queue};
use consumer_core::{Message, Outgoing, Publisher};
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};

use super::super::{
    Fallible,
    topic::{id, original, payload},
};

/// On their way while a queue is filled.
const AT_ONCE: usize = 2_000;

/// A queue and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Filled {
    pub(super) name: String,
    pub(super) messages: usize,
    pub(super) unique: usize,
}

impl Filled {
    pub(super) async fn new(url: &str, name: &str, messages: usize) -> Fallible<Self> {
        let name = format!("bench-{name}-{}-{}", std::process::id(), messages);
        let admin = AmqpAdmin::new(url)?;
        // What an earlier run of one name has left over.
        admin.delete_queue(&name).await?;
        admin.ensure_queue(Queue::quorum(&name)).await?;
        let publisher = AmqpPublisher::builder(url).build()?;
        let mut confirms = FuturesUnordered::new();
        for n in 0..messages {
            if confirms.len() == AT_ONCE {
                confirms.next().await.ok_or("no confirm")??;
            }
            confirms.push(publisher.publish(Outgoing::new(name.as_str(), message(n))));
        }
        while let Some(confirmed) = confirms.next().await {
            confirmed?;
        }
        let unique = (0..messages).filter(|n| original(*n) == *n).count();
        Ok(Self { name, messages, unique })
    }
}

pub(in crate::servers) fn message(n: usize) -> Message {
    let n = original(n);
    Message::builder().payload(payload(n)).key(format!("o-{n}")).header("message-id", id(n)).build()
}

/// A consumer written by hand.
pub(super) async fn consume(
    url: &str,
    queue: &str,
    prefetch: u16,
) -> Fallible<(Connection, Channel, Consumer)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let options = BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok((connection, channel, consumer))
}

pub(super) fn id_of(delivery: &Delivery) -> Fallible<String> {
    let id = delivery.properties.message_id().as_ref().ok_or("a message without id")?;
    Ok(id.to_string())
}
