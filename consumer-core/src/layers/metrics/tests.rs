use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::MetricsLayer;
use crate::{Failure, Message, Outcome, RetryLayer};

/// Keeps counters as their sum, and histograms as the number of what was recorded.
#[derive(Default)]
pub(crate) struct Kept {
    values: Mutex<BTreeMap<String, Arc<Value>>>,
}

#[derive(Default)]
struct Value(AtomicU64);

impl CounterFn for Value {
    fn increment(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl HistogramFn for Value {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Kept {
    fn value(&self, key: &Key) -> Arc<Value> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(","));
        self.values.lock().unwrap().entry(name).or_default().clone()
    }

    /// All that is not zero.
    pub(crate) fn read(&self) -> BTreeMap<String, u64> {
        let values = self.values.lock().unwrap();
        let read = values.iter().map(|(name, value)| (name.clone(), value.0.load(Ordering::Relaxed)));
        read.filter(|(_, value)| *value > 0).collect()
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.value(key))
    }
}

#[tokio::test(start_paused = true)]
async fn deliveries_are_counted_by_outcome_and_calls_by_result() {
    let kept = Kept::default();
    let stack = metrics::with_local_recorder(&kept, || {
        ServiceBuilder::new()
            .layer(MetricsLayer::new("mails"))
            .layer(RetryLayer::fixed(Duration::from_secs(1)).consumer("mails"))
            .service(service_fn(|message: Message| async move {
                match &message.payload()[..] {
                    b"ok" => Ok(Outcome::Processed),
                    b"again" => Ok(Outcome::Duplicate),
                    b"hiccup" if message.attempt() == 2 => Ok(Outcome::Processed),
                    b"back" => Err(Failure::cancelled("shutdown")),
                    b"never" => std::future::pending().await,
                    _ => Err(Failure::transient("away")),
                }
            }))
    });
    for payload in ["ok", "again", "hiccup", "back", "bad"] {
        let _ = stack.clone().oneshot(Message::new(payload)).await;
    }
    let mut dropped = Box::pin(stack.clone().oneshot(Message::new("never")));
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);

    let expected = [
        ("consumer_attempts_total consumer=mails,result=failed", 5),
        ("consumer_attempts_total consumer=mails,result=ok", 3),
        ("consumer_deliveries_total consumer=mails,outcome=dropped", 1),
        ("consumer_deliveries_total consumer=mails,outcome=duplicate", 1),
        ("consumer_deliveries_total consumer=mails,outcome=failed", 1),
        ("consumer_deliveries_total consumer=mails,outcome=processed", 2),
        ("consumer_deliveries_total consumer=mails,outcome=returned", 1),
        ("consumer_delivery_duration_seconds consumer=mails,outcome=dropped", 1),
        ("consumer_delivery_duration_seconds consumer=mails,outcome=duplicate", 1),
        ("consumer_delivery_duration_seconds consumer=mails,outcome=failed", 1),
        ("consumer_delivery_duration_seconds consumer=mails,outcome=processed", 2),
        ("consumer_delivery_duration_seconds consumer=mails,outcome=returned", 1),
        ("consumer_failed_attempts consumer=mails", 1),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(kept.read(), expected);
}

#[test]
fn every_name_has_the_prefix_and_is_in_the_table_of_the_docs() {
    let docs = include_str!("mod.rs");
    let names = include_str!("names.rs");
    let mut seen = 0;
    for line in names.lines().filter(|line| line.starts_with("pub const") && line.contains("\"consumer_")) {
        let name = line.split('"').nth(1).unwrap();
        assert!(docs.contains(&format!("`{name}`")), "{name} is not in the table");
        seen += 1;
    }
    assert_eq!(seen, 21);
}
