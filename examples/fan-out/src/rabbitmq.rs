//! RabbitMQ: a fanout exchange puts each event into every queue that is bound to it, and each service has a queue.

use async_trait::async_trait;
use consumer::{
    BoxError, BoxSource, DynPublisher,
    amqp::{AmqpAdmin, AmqpPublisher, AmqpSource, Exchange, Queue},
};

use crate::broker::{Broker, dead, subscription};

pub(crate) struct RabbitMq {
    url: String,
    topic: String,
}

impl RabbitMq {
    pub(crate) fn new(url: &str, topic: &str) -> Result<Self, BoxError> {
        let rabbitmq = Self { url: url.to_owned(), topic: topic.to_owned() };
        // Only for what is wrong with the names: nothing connects before it is used.
        rabbitmq.subscribe("any")?;
        Ok(rabbitmq)
    }

    fn queue(&self, service: &str) -> Queue {
        Queue::quorum(subscription(&self.topic, service))
            .dead_letter(dead(&self.topic, service))
            .bind(Exchange::fanout(&*self.topic), "")
    }
}

#[async_trait]
impl Broker for RabbitMq {
    /// The sources would declare the same when they connect. But an exchange keeps nothing: an event that is published
    /// before a queue is bound is not for that queue.
    async fn prepare(&self, services: &[&str]) -> Result<(), BoxError> {
        let admin = AmqpAdmin::new(&self.url)?;
        for service in services {
            admin.ensure_queue(self.queue(service)).await?;
        }
        Ok(())
    }

    fn subscribe(&self, service: &str) -> Result<BoxSource, BoxError> {
        Ok(Box::new(AmqpSource::builder(&self.url).queue(self.queue(service)).build()?))
    }

    fn events(&self) -> Result<DynPublisher, BoxError> {
        Ok(DynPublisher::new(AmqpPublisher::builder(&self.url).exchange(&*self.topic).build()?))
    }

    /// Through the default exchange, where the target is the name of a queue.
    fn dead_letters(&self) -> Result<DynPublisher, BoxError> {
        Ok(DynPublisher::new(AmqpPublisher::builder(&self.url).build()?))
    }

    fn replay(&self, _: &str, _: &str) -> Result<Option<BoxSource>, BoxError> {
        Ok(None)
    }
}
