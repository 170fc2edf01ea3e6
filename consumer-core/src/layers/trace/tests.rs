use futures_util::FutureExt;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tracing::{Level, instrument::WithSubscriber};
use tracing_subscriber::fmt::format::FmtSpan;

use super::TraceLayer;
use crate::{Failure, Message, Outcome, logged::Log};

fn message() -> Message {
    Message::builder()
        .payload("card 4242")
        .id("4711")
        .key("o-17")
        .header("authorization", "Bearer s3cret")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .build()
        .with_attempt(2)
        .with_epoch(99)
}

/// What is logged, down to `level`, for a message that ends like this.
async fn logged(layer: TraceLayer, level: Level, end: fn() -> Result<Outcome, Failure>) -> String {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let handler = service_fn(move |_: Message| async move {
        tracing::info!("inside");
        end()
    });
    let stack = ServiceBuilder::new().layer(layer).service(handler);
    let _ = stack.oneshot(message()).with_subscriber(subscriber).await;
    log.text()
}

#[tokio::test]
async fn the_span_identifies_the_message_and_shows_no_payload_and_no_header_value() {
    let text = logged(TraceLayer::new(), Level::DEBUG, || Ok(Outcome::Duplicate)).await;
    for part in [
        "message_id=4711",
        "key=o-17",
        "origin=local",
        "attempt=2",
        "epoch=99",
        "traceparent=\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"",
        "outcome=\"duplicate\"",
        "message done",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("4242") && !text.contains("s3cret"), "{text}");
    assert!(text.lines().any(|line| line.contains("message_id=4711") && line.contains("inside")), "{text}");
}

#[tokio::test]
async fn a_failure_is_told_with_its_chain_and_a_return_is_no_warning() {
    let text = logged(TraceLayer::new(), Level::INFO, || Err(Failure::transient("away"))).await;
    assert!(text.contains("WARN") && text.contains("error=transient failure: away"), "{text}");
    assert!(text.contains("outcome=\"failed\""), "{text}");

    let text = logged(TraceLayer::new(), Level::INFO, || Err(Failure::cancelled("shutdown"))).await;
    assert!(!text.contains("WARN") && !text.contains("message handed back"), "{text}");
    assert!(text.contains("outcome=\"returned\""), "{text}");
}

#[tokio::test]
async fn levels_can_be_set() {
    let layer = TraceLayer::new().level(Level::DEBUG).on_success(Level::INFO).on_failure(Level::ERROR);
    let text = logged(layer.clone(), Level::INFO, || Ok(Outcome::Processed)).await;
    assert!(text.contains("message done") && !text.contains("message_id"), "{text}");
    let text = logged(layer, Level::INFO, || Err(Failure::transient("away"))).await;
    assert!(text.contains("ERROR") && text.contains("message failed"), "{text}");
}

#[tokio::test]
async fn a_dropped_delivery_is_told() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let handler = service_fn(|_: Message| std::future::pending::<Result<(), Failure>>());
    let mut stack = ServiceBuilder::new().layer(TraceLayer::new()).service(handler);
    let guard = tracing::subscriber::set_default(subscriber);
    let mut call = Box::pin(stack.ready().await.unwrap().call(message()));
    assert!((&mut call).now_or_never().is_none());
    drop(call);
    drop(guard);
    assert!(log.text().contains("outcome=\"dropped\""), "{}", log.text());
}
