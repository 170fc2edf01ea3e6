//! The second handler: adds what was ordered to the balance of the account.

use std::{future::Future, time::Duration};

use consumer::{
    BoxError, Consumer, DeadLetterLayer, DynPublisher, Failure, Outgoing, Pipeline, PublishError, Publisher,
    RetryLayer, TimeoutLayer, TraceLayer,
    handler::{Json, handler},
    runtime::{Stack, signal},
    sql::{InboxLayer, Tx},
};
use sqlx::Pool;
use tower::ServiceExt;

use crate::{broker::Broker, database::Shop, order::Order};

/// The consumer group, and the scope of what the inbox remembers.
const CONSUMER: &str = "balances";
/// Each holds a connection.
const AT_ONCE: usize = 8;
const ATTEMPT: Duration = Duration::from_secs(10);

/// In the transaction in which the inbox records the event: both happen, or neither.
async fn add<DB: Shop>(Json(order): Json<Order>, mut tx: Tx<DB>) -> Result<(), Failure> {
    Ok(DB::add(&mut tx, &order.email, order.total).await?)
}

/// The consumer of a broker's events, until it is asked to stop.
pub(crate) async fn run<DB: Shop>(pool: Pool<DB>, broker: &dyn Broker, queue: &str) -> Result<(), BoxError> {
    let (source, dead_letters) = broker.source(queue, CONSUMER).await?;
    let inbox = InboxLayer::new(pool.clone(), CONSUMER);
    inbox.check().await?;
    let pipeline = Pipeline::new()
        .trace(TraceLayer::new())
        .dead_letter(DeadLetterLayer::new(dead_letters.publisher, dead_letters.target))
        .retry(RetryLayer::exponential(Duration::from_millis(200)).max_attempts(5))
        .concurrency(AT_ONCE)
        .inbox(inbox)
        .timeout(TimeoutLayer::new(ATTEMPT));
    eprintln!("{}", pipeline.explain());
    let stack = pipeline.service(handler(add::<DB>));
    let report = Consumer::new(source, stack).name(CONSUMER).shutdown(signal::terminate()).run().await?;
    println!(
        "{} booked, {} known before, {} set aside",
        report.processed, report.duplicates, report.dead_lettered
    );
    Ok(())
}

/// In place of a broker: hands each event to the handler, and confirms it when that has committed.
pub(crate) fn in_process<DB: Shop>(pool: Pool<DB>) -> DynPublisher {
    let pipeline = Pipeline::new()
        .trace(TraceLayer::new())
        .concurrency(AT_ONCE)
        .inbox(InboxLayer::new(pool, CONSUMER))
        .timeout(TimeoutLayer::new(ATTEMPT));
    DynPublisher::new(InProcess(pipeline.service(handler(add::<DB>))))
}

#[derive(Debug, Clone)]
struct InProcess<S>(S);

impl<S: Stack + Sync> Publisher for InProcess<S> {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<S> {
        let (stack, event) = (self.0.clone(), outgoing.message().clone());
        let call =
            tokio::spawn(async move { stack.oneshot(event).await.map(drop).map_err(Failure::from_error) });
        async move {
            let failed = match call.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(aborted) => Failure::transient(aborted),
            };
            // As a broker that refuses one message, and not as one that is away: the others go on, and this one is tried
            // again later, and in the end quarantined in the outbox. (For a database that is away the inbox waits.)
            Err(PublishError::refused("the handler has failed").with_source(failed.into_error()))
        }
    }
}
