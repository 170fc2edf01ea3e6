//! RabbitMQ: queues, source and publisher.

use std::time::Duration;

use consumer::{
    BoxSource, Demand, DynPublisher, Source,
    amqp::{AmqpAdmin, AmqpError, AmqpPublisher, AmqpSource, Queue},
    runtime::Ordering,
};
use tokio::time::{Instant, sleep};

use crate::{cli::Consume, stop::Stop};

/// How long a broker is looked for.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(200);

/// A consumer that was configured, but has not met a broker.
pub(crate) struct Consumer {
    source: AmqpSource,
    publisher: AmqpPublisher,
}

impl Consumer {
    pub(crate) fn new(url: &str, options: &Consume) -> Result<Self, Stop> {
        let ordering = Ordering::from(options.ordering);
        let mut queue = Queue::quorum(&*options.broker.topic).dead_letter(options.broker.dead_letter());
        if ordering != Ordering::None {
            queue = queue.single_active_consumer();
        }
        let source = AmqpSource::builder(url).queue(queue).accept_foreign_queue().start_timeout(START_LIMIT);
        let mut source = source.build().map_err(stop)?;
        // The run asks for the same: what a queue cannot give is found here, without the network.
        let demand = Demand::new(options.max_in_flight.get() as usize).ordered(ordering);
        source.configure(demand).map_err(|error| Stop::usage(Stop::from_error(&error).to_string()))?;
        let publisher = source.publisher().map_err(stop)?;
        Ok(Self { source, publisher })
    }

    /// The source declares both queues when it connects, in the run.
    pub(crate) async fn connect(self) -> Result<(BoxSource, DynPublisher), Stop> {
        Ok((Box::new(self.source), DynPublisher::new(self.publisher)))
    }
}

/// A publisher that was configured, but has not met a broker.
pub(crate) struct Producer {
    admin: AmqpAdmin,
    publisher: AmqpPublisher,
    queue: Queue,
}

impl Producer {
    pub(crate) fn new(url: &str, topic: &str, dead: &str) -> Result<Self, Stop> {
        Ok(Self {
            admin: AmqpAdmin::new(url).map_err(stop)?,
            publisher: AmqpPublisher::builder(url).build().map_err(stop)?,
            queue: Queue::quorum(topic).dead_letter(dead),
        })
    }

    /// Looks for the queues and declares what is missing.
    pub(crate) async fn connect(self) -> Result<DynPublisher, Stop> {
        let began = Instant::now();
        loop {
            match self.admin.ensure_queue_or_foreign(self.queue.clone()).await {
                Ok(()) => return Ok(DynPublisher::new(self.publisher)),
                Err(error) if error.is_unreachable() && began.elapsed() + PAUSE < START_LIMIT => {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(stop(error)),
            }
        }
    }
}

fn stop(error: AmqpError) -> Stop {
    let stop = Stop::from_error(&error);
    if error.is_config() { Stop::usage(stop.to_string()) } else { stop }
}
