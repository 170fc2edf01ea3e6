//! What is in a message adds no line to the log and orders no terminal about.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer_core::{
    CatchPanicLayer, Consumer, DeadLetterLayer, DedupLayer, DelayedRetryLayer, Failure, Message, Outgoing,
    Publisher, RetryLayer, TraceLayer,
    memory::{MemoryBroker, MemoryStore},
};
use tower::{ServiceBuilder, service_fn};
use tracing_subscriber::fmt::MakeWriter;

const HOSTILE: &str = "\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}\0{}%";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Fails in every way there is, with what the message says.
async fn fail(message: Message) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(message.payload()).into_owned();
    match message.headers().get_str("way").unwrap_or_default() {
        "transient" => Err(Failure::transient(text)),
        "permanent" => Err(Failure::permanent(text)),
        "undecodable" => Err(Failure::undecodable(text)),
        _ => std::panic::resume_unwind(Box::new(text)),
    }
}

#[tokio::test(start_paused = true)]
async fn no_part_of_a_message_begins_a_line_or_acts_on_a_terminal() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    subscriber.with_writer(log.clone()).init();
    let broker = MemoryBroker::new();
    for topic in ["orders", "dead"] {
        broker.create_topic(topic, 1);
    }
    let publisher = broker.publisher();
    for way in ["transient", "permanent", "undecodable", "panic"] {
        let message = Message::builder()
            .payload(HOSTILE)
            .key(HOSTILE)
            .header("message-id", format!("{way}{HOSTILE}"))
            .header("traceparent", HOSTILE)
            .header(HOSTILE, HOSTILE)
            .header("way", way);
        publisher.publish(Outgoing::new("orders", message.build())).await.unwrap();
    }
    let second = Duration::from_secs(1);
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(DeadLetterLayer::new(broker.publisher(), "dead").consumer("mails"))
        .layer(DelayedRetryLayer::new(broker.publisher()).delays([second]))
        .layer(DedupLayer::new(MemoryStore::new(), "mails"))
        .layer(RetryLayer::exponential(second).max_attempts(2))
        .layer(CatchPanicLayer::new())
        .service(service_fn(fail));
    let report = Consumer::new(broker.source("mails", ["orders"]), stack)
        .stop_when_idle(60 * second)
        .run()
        .await
        .unwrap();
    assert_eq!(report.dead_lettered, 4, "{report}");

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.matches("forged").count() > 20, "the messages are in the log: {log}");
    for line in log.split('\n').filter(|line| !line.is_empty()) {
        let level = line.split_whitespace().nth(1).unwrap_or_default();
        assert!(["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level), "no line of ours: {line:?}");
        assert!(!line.starts_with("2026-01-01T00:00:00Z "), "forged: {line:?}");
        let acts = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
        assert!(!line.contains(acts), "it acts: {line:?}");
    }
}
