//! RabbitMQ: a queue for each group of consumers.

use async_trait::async_trait;
use consumer::{
    BoxError, BoxSource, DynPublisher,
    amqp::{AmqpAdmin, AmqpPublisher, AmqpSource, Queue},
};

use super::{Broker, DeadLetters};

pub(super) struct RabbitMq {
    url: String,
    admin: AmqpAdmin,
}

impl RabbitMq {
    pub(super) fn new(url: &str) -> Result<Self, BoxError> {
        Ok(Self { url: url.to_owned(), admin: AmqpAdmin::new(url)? })
    }
}

fn dead(queue: &str) -> String {
    format!("{queue}.dead")
}

#[async_trait]
impl Broker for RabbitMq {
    /// Queues that there are may have been declared by their consumers, with options of their own.
    async fn publisher(&self, queues: &[String]) -> Result<DynPublisher, BoxError> {
        for name in queues {
            let queue = Queue::quorum(name.as_str()).dead_letter(dead(name));
            self.admin.ensure_queue_or_foreign(queue).await?;
        }
        Ok(DynPublisher::new(AmqpPublisher::builder(&self.url).build()?))
    }

    /// The source declares both queues when it connects.
    async fn source(&self, queue: &str, _: &str) -> Result<(BoxSource, DeadLetters), BoxError> {
        let target = dead(queue);
        let queue = Queue::quorum(queue).dead_letter(target.as_str());
        let source = AmqpSource::builder(&self.url).queue(queue).accept_foreign_queue().build()?;
        let publisher = DynPublisher::new(source.publisher()?);
        Ok((Box::new(source), DeadLetters { publisher, target }))
    }
}
