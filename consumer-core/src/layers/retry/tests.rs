use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::RetryLayer;
use crate::{Failure, Message};

const SECOND: Duration = Duration::from_secs(1);

/// Calls seen by a handler: the attempt and the seconds since the first one.
#[derive(Clone)]
struct Calls {
    start: Instant,
    seen: Arc<Mutex<Vec<(u32, u64)>>>,
}

impl Calls {
    fn new() -> Self {
        Self { start: Instant::now(), seen: Arc::default() }
    }

    fn record(&self, message: &Message) {
        self.seen.lock().unwrap().push((message.attempt(), self.start.elapsed().as_secs()));
    }

    fn attempts(&self) -> Vec<u32> {
        self.seen.lock().unwrap().iter().map(|(attempt, _)| *attempt).collect()
    }

    fn times(&self) -> Vec<u64> {
        self.seen.lock().unwrap().iter().map(|(_, at)| *at).collect()
    }
}

async fn run(
    layer: RetryLayer,
    message: Message,
    calls: &Calls,
    fail: fn() -> Failure,
) -> Result<(), Failure> {
    let handler = service_fn(|message: Message| {
        calls.record(&message);
        async move { Err(fail()) }
    });
    ServiceBuilder::new().layer(layer).service(handler).oneshot(message).await
}

fn exponential() -> RetryLayer {
    RetryLayer::exponential(SECOND).jitter(false)
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_and_waits_double() {
    let calls = Calls::new();
    // Each look at the clock is a day later.
    let day = std::sync::atomic::AtomicU32::new(0);
    let clock = move || {
        SystemTime::UNIX_EPOCH + 86_400 * SECOND * day.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    };
    let layer = exponential().max_attempts(4).clock(clock);
    let failure = run(layer, Message::new("x"), &calls, || Failure::transient("away")).await.unwrap_err();
    assert_eq!(calls.attempts(), [1, 2, 3, 4]);
    assert_eq!(calls.times(), [0, 1, 3, 7]);
    assert!(failure.is_transient(), "used-up attempts do not change the class");
    assert_eq!(failure.attempts(), Some(4));
    assert_eq!(failure.first_failed_at(), Some(SystemTime::UNIX_EPOCH), "the first failure, not the last");
    assert_eq!(failure.chain(), "transient failure: away");
}

#[tokio::test(start_paused = true)]
async fn a_message_past_the_bound_gets_exactly_one_call() {
    for arrives in [3, 4, 9] {
        let calls = Calls::new();
        let message = Message::new("x").with_attempt(arrives);
        let failure = run(exponential(), message, &calls, || Failure::transient("away")).await.unwrap_err();
        assert_eq!(calls.attempts(), [arrives]);
        assert_eq!(failure.attempts(), Some(arrives));
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_go_on_from_where_the_message_is() {
    let calls = Calls::new();
    let message = Message::new("x").with_attempt(2);
    let failure = run(exponential(), message, &calls, || Failure::transient("away")).await.unwrap_err();
    assert_eq!(calls.attempts(), [2, 3]);
    assert_eq!(calls.times(), [0, 2], "the wait is the one after the second attempt");
    assert_eq!(failure.attempts(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn fm26_an_undecodable_message_is_not_tried_again() {
    for fail in [|| Failure::undecodable("not json"), || Failure::permanent("no such customer")] {
        let calls = Calls::new();
        let failure = run(exponential(), Message::new("x"), &calls, fail).await.unwrap_err();
        assert!(failure.is_permanent());
        assert_eq!(calls.attempts(), [1]);
        assert_eq!(failure.attempts(), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn fm24_an_error_never_becomes_a_success() {
    let calls = Calls::new();
    let result = run(RetryLayer::none(), Message::new("x"), &calls, || Failure::transient("away")).await;
    assert_eq!(result.unwrap_err().attempts(), Some(1));
    assert_eq!(calls.attempts(), [1]);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_up_to_max_elapsed() {
    let fail = || Failure::transient("busy").with_retry_after(20 * SECOND);
    let calls = Calls::new();
    let _ = run(RetryLayer::fixed(SECOND).max_attempts(9), Message::new("x"), &calls, fail).await;
    assert_eq!(calls.times()[..3], [0, 20, 40]);

    let calls = Calls::new();
    let layer = RetryLayer::fixed(SECOND).max_attempts(9).max_elapsed(30 * SECOND);
    let failure = run(layer, Message::new("x"), &calls, fail).await.unwrap_err();
    assert_eq!(calls.times(), [0, 20]);
    assert_eq!(calls.start.elapsed().as_secs(), 20, "a wait that cannot end in time is not begun");
    assert_eq!(failure.attempts(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn jitter_stays_within_the_scheduled_wait() {
    for _ in 0..20 {
        let calls = Calls::new();
        let layer = RetryLayer::exponential(SECOND).max_attempts(3).cap(2 * SECOND);
        let _ = run(layer, Message::new("x"), &calls, || Failure::transient("away")).await;
        assert_eq!(calls.attempts(), [1, 2, 3]);
        // Tokio's timers round up to the millisecond.
        assert!(
            calls.start.elapsed() <= 3 * SECOND + Duration::from_millis(4),
            "{:?}",
            calls.start.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_classifier_makes_failures_permanent() {
    let calls = Calls::new();
    let layer = exponential().permanent_if(|failure| failure.find::<std::num::ParseIntError>().is_some());
    let fail = || Failure::from("ten".parse::<u32>().unwrap_err());
    let failure = run(layer, Message::new("x"), &calls, fail).await.unwrap_err();
    assert!(failure.is_permanent());
    assert_eq!(calls.attempts(), [1]);
}

#[tokio::test(start_paused = true)]
async fn fm25_fm32_a_message_cancelled_in_its_backoff_is_handed_back_with_what_was_counted() {
    let calls = Calls::new();
    let token = CancellationToken::new();
    let message = Message::new("x").with_cancellation(token.clone());
    let cancel = async {
        tokio::time::sleep(2 * SECOND).await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(
        run(exponential().max_attempts(9), message, &calls, || Failure::transient("away")),
        cancel
    );
    let failure = result.unwrap_err();
    assert!(failure.is_cancelled());
    assert_eq!(calls.attempts(), [1, 2]);
    assert_eq!(calls.start.elapsed().as_secs(), 2, "it does not wait for the end of the backoff");
    assert_eq!(failure.attempts(), Some(2), "the call that was never made counts nothing");
    assert!(failure.first_failed_at().is_some());
    assert!(failure.chain().ends_with("transient failure: away"), "{}", failure.chain());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_handed_back_counts_nothing() {
    let calls = Calls::new();
    let message = Message::new("x").with_attempt(2);
    let failure = run(exponential(), message, &calls, || Failure::cancelled("shutdown")).await.unwrap_err();
    assert!(failure.is_cancelled());
    assert_eq!(failure.attempts(), Some(1));
    assert_eq!(calls.attempts(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_message_in_its_backoff_holds_no_permit_of_what_is_inside() {
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::fixed(60 * SECOND).max_attempts(2))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(|message: Message| async move {
            if message.attempt() == 1 { Err("away") } else { Ok(()) }
        }));
    let start = Instant::now();
    let (a, b) =
        tokio::join!(stack.clone().oneshot(Message::new("a")), stack.clone().oneshot(Message::new("b")));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn it_is_ready_while_what_is_inside_is_not() {
    let (mock, mut handle) = tower_test::mock::pair::<Message, ()>();
    handle.allow(0);
    let mut stack = ServiceBuilder::new().layer(RetryLayer::none()).service(mock);
    let call = stack.ready().await.unwrap().call(Message::new("x"));
    let serve = async {
        handle.allow(1);
        let (_, reply) = handle.next_request().await.unwrap();
        reply.send_response(());
    };
    let (result, ()) = tokio::join!(biased; call, serve);
    assert!(result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn fm25_fm39_a_transient_failure_of_a_cancelled_message_is_handed_back_and_counts_nothing() {
    let calls = Calls::new();
    let token = CancellationToken::new();
    token.cancel();
    let message = Message::new("x").with_attempt(2).with_cancellation(token);
    let failure = run(exponential(), message.clone(), &calls, || Failure::transient("stopped half way"));
    let failure = failure.await.unwrap_err();
    assert!(failure.is_cancelled(), "{failure:?}");
    assert_eq!(failure.attempts(), Some(1));
    assert_eq!(calls.attempts(), [2]);
    let failure =
        run(exponential(), message, &calls, || Failure::permanent("no such order")).await.unwrap_err();
    assert!(failure.is_permanent());
    assert_eq!(failure.attempts(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_classifier_that_panics_makes_the_failure_permanent() {
    let calls = Calls::new();
    let layer = exponential().permanent_if(|_| panic!("boom"));
    let failure = run(layer, Message::new("x"), &calls, || Failure::transient("away")).await.unwrap_err();
    assert!(failure.is_permanent());
    assert_eq!((calls.attempts(), failure.cause()), (vec![1], "away".to_owned()));
}
