//! A key that something waited in is up to date again soon after.

use super::*;
use crate::dedup::StoreKey;

/// One message every two seconds.
const BETWEEN: Duration = Duration::from_secs(2);

struct Traffic {
    /// In the order they were handled: which one, and how long after it was sent.
    handled: Vec<(u32, Duration)>,
    most_parked: usize,
    report: Report,
}

/// Sends `count` messages of one key; those that `fails` names fail once. A call takes a little while.
async fn traffic(count: u32, fails: fn(u32) -> bool) -> Traffic {
    let (broker, store) = (broker(&[]).await, MemoryStore::new());
    let (started, handled) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let dedup = DedupLayer::new(store.clone(), "c");
    let log = handled.clone();
    let stack = ServiceBuilder::new()
        .layer(DeadLetterLayer::new(broker.publisher(), "dead"))
        .layer(layer(&broker).parking(dedup.parking()))
        .layer(dedup)
        .service(service_fn(move |message: Message| {
            let log = log.clone();
            async move {
                sleep(Duration::from_millis(10)).await;
                let nth: u32 = std::str::from_utf8(message.id().unwrap()).unwrap().parse().unwrap();
                if message.attempt() == 1 && fails(nth) {
                    return Err(Failure::transient("down"));
                }
                log.lock().unwrap().push((nth, started.elapsed() - nth * BETWEEN));
                Ok(())
            }
        }));
    let consumer = Consumer::new(broker.source("g", ["t"]), stack).ordering(Ordering::Key);
    let run = tokio::spawn(consumer.stop_when_idle(400 * SECOND).run());
    let (key, mut most_parked) = (StoreKey::new("c".into(), "t\0k".to_owned().into()), 0);
    for nth in 0..count {
        publish(&broker, &nth.to_string()).await;
        sleep(BETWEEN).await;
        most_parked = most_parked.max(store.parked(&key).len());
    }
    let report = run.await.unwrap().unwrap();
    let handled = handled.lock().unwrap().clone();
    Traffic { handled, most_parked, report }
}

fn in_order(count: u32) -> Vec<u32> {
    (0..count).collect()
}

#[tokio::test(start_paused = true)]
async fn fm22_under_steady_traffic_the_lag_of_a_key_ends_soon_after_its_retry() {
    let Traffic { handled, report, .. } = traffic(1800, |nth| nth == 0).await;
    assert_eq!(handled.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), in_order(1800));
    // The retry comes after 30 s. What came after three times the shortest delay waits for nothing any more.
    let behind: Vec<_> =
        handled.iter().filter(|(nth, lag)| *nth * BETWEEN > 90 * SECOND && *lag > SECOND).collect();
    assert!(behind.is_empty(), "{} are late, the last one {:?}", behind.len(), behind.last());
    assert_eq!((report.processed, report.dead_lettered), (1800, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn fm22_the_list_of_a_key_does_not_grow_from_retry_to_retry() {
    let Traffic { handled, most_parked, report } = traffic(3600, |nth| nth % 100 == 0).await;
    assert_eq!(handled.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), in_order(3600));
    // What comes in three times the shortest delay, one in two seconds.
    assert!(most_parked <= 45, "{most_parked}");
    assert_eq!((report.processed, report.dead_lettered), (3600, 0), "{report}");
}
