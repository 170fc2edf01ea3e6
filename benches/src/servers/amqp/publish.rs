//! Publishing with confirms: many on their way, and one after the other.

use std::time::Instant;

use consumer_amqp::{AmqpAdmin, AmqpPublisher, Queue};
use consumer_core::{Outgoing, Publisher};
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{super::Fallible, ROUNDS, queue::message};
use crate::{
    report::{Report, Row},
    rounds::median,
};

const ONE_BY_ONE: usize = 3_000;
const TOGETHER: usize = 20_000;
const AT_ONCE: usize = 2_000;

pub(super) async fn measure(report: &mut Report, url: &str) -> Fallible<()> {
    let queue = format!("bench-publish-{}", std::process::id());
    AmqpAdmin::new(url)?.ensure_queue(Queue::quorum(&queue)).await?;
    let publisher = AmqpPublisher::builder(url).build()?;
    let (mut single, mut many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        single.push(rate(&publisher, &queue, ONE_BY_ONE, 1).await?);
        many.push(rate(&publisher, &queue, TOGETHER, AT_ONCE).await?);
    }
    AmqpAdmin::new(url)?.delete_queue(&queue).await?;
    let row = Row::new("rabbitmq, publish and confirm, 2,000 on their way", median(many), "messages/s");
    report.add(row.against("one by one", median(single)).ratio_at_least(3.0));
    Ok(())
}

async fn rate(publisher: &AmqpPublisher, queue: &str, messages: usize, at_once: usize) -> Fallible<f64> {
    let mut confirms = FuturesUnordered::new();
    let from = Instant::now();
    for n in 0..messages {
        if confirms.len() == at_once {
            confirms.next().await.ok_or("no confirm")??;
        }
        confirms.push(publisher.publish(Outgoing::new(queue, message(n))));
    }
    while let Some(confirmed) = confirms.next().await {
        confirmed?;
    }
    Ok(messages as f64 / from.elapsed().as_secs_f64())
}
