use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::{
    RateLimitLayer,
    limiter::{Limit, Limiter},
};
use crate::{Failure, Message, RetryLayer};

const SECOND: Duration = Duration::from_secs(1);

type Calls = Arc<Mutex<Vec<(String, u64)>>>;

/// A stack whose handler notes each payload and the milliseconds since the start.
fn stack(
    layer: RateLimitLayer,
    calls: &Calls,
) -> impl Service<Message, Response = (), Error = Failure, Future: Send> + Clone {
    let (calls, start) = (calls.clone(), Instant::now());
    ServiceBuilder::new().layer(layer).service(service_fn(move |message: Message| {
        let payload = String::from_utf8_lossy(message.payload()).into_owned();
        calls.lock().unwrap().push((payload, start.elapsed().as_millis() as u64));
        async { Ok::<_, Failure>(()) }
    }))
}

#[tokio::test(start_paused = true)]
async fn calls_are_spread_and_go_on_in_order() {
    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per_second(10).burst(2), &calls);
    let all = (0..6).map(|n| stack.clone().oneshot(Message::new(n.to_string())));
    assert!(join_all(all).await.iter().all(Result::is_ok));
    let calls = calls.lock().unwrap();
    let order: Vec<_> = calls.iter().map(|(payload, _)| payload.as_str()).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "5"]);
    for (expected, (_, at)) in [0, 0, 100, 200, 300, 400].iter().zip(calls.iter()) {
        assert!((*expected..=expected + 2).contains(at), "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake_those_who_wait() {
    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per_second(1).burst(1), &calls);
    stack.clone().oneshot(Message::new("first")).await.unwrap();
    let mut waiting = Box::pin(stack.clone().oneshot(Message::new("waiting")));
    assert!((&mut waiting).now_or_never().is_none());
    // The token is there, but the one it is for has not been polled yet.
    tokio::time::advance(SECOND + Duration::from_millis(5)).await;
    let newcomer = stack.clone().oneshot(Message::new("newcomer"));
    let (newcomer, waiting) = tokio::join!(newcomer, waiting);
    assert!(newcomer.is_ok() && waiting.is_ok());
    let order: Vec<_> = calls.lock().unwrap().iter().map(|(payload, _)| payload.clone()).collect();
    assert_eq!(order, ["first", "waiting", "newcomer"]);
}

#[tokio::test(start_paused = true)]
async fn the_full_rate_is_reached_although_timers_are_coarse() {
    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per_second(5_000), &calls);
    let start = Instant::now();
    join_all((0..5_500).map(|_| stack.clone().oneshot(Message::new("x")))).await;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(990) && took <= Duration::from_millis(1_100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_limit() {
    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per_second(1).burst(1).per_message_key(), &calls);
    let message = |key: &'static str| Message::builder().payload(key).key(key).build();
    let all = ["a", "b", "a", "c"].map(|key| stack.clone().oneshot(message(key)));
    join_all(all).await;
    let calls = calls.lock().unwrap();
    let at: Vec<_> = calls.iter().map(|(key, at)| (key.as_str(), at / 1000)).collect();
    assert_eq!(at, [("a", 0), ("b", 0), ("c", 0), ("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_memory_for_keys_is_bounded() {
    let limit = Limit { tokens: 10.try_into().unwrap(), period: SECOND, burst: None };
    let limiter = Limiter::new(limit, true);
    for key in 0..50_000_u64 {
        assert!(limiter.try_take(key));
        if key % 100 == 0 {
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }
    assert!(limiter.keys() < 3_000, "{}", limiter.keys());
}

#[tokio::test(start_paused = true)]
async fn every_attempt_takes_a_token() {
    let calls = Arc::new(Mutex::new(0));
    let handler = service_fn(|_: Message| {
        *calls.lock().unwrap() += 1;
        async { Err::<(), _>("away") }
    });
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::fixed(Duration::ZERO).max_attempts(3))
        .layer(RateLimitLayer::per(1, 10 * SECOND))
        .service(handler);
    let start = Instant::now();
    assert!(stack.oneshot(Message::new("x")).await.is_err());
    assert_eq!(*calls.lock().unwrap(), 3);
    assert_eq!(start.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn fm25_a_message_cancelled_while_it_waits_is_handed_back_and_leaves_the_queue() {
    let limit = Limit { tokens: 1.try_into().unwrap(), period: 60 * SECOND, burst: None };
    let limiter = Limiter::new(limit, false);
    limiter.take(0).await;
    {
        let mut waiting = Box::pin(limiter.take(0));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(limiter.queued_keys(), 1);
    }
    assert_eq!(limiter.queued_keys(), 0);

    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per(1, 60 * SECOND), &calls);
    stack.clone().oneshot(Message::new("first")).await.unwrap();
    let token = CancellationToken::new();
    let message = Message::new("second").with_cancellation(token.clone());
    let start = Instant::now();
    let cancel = async {
        tokio::time::sleep(SECOND).await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(stack.clone().oneshot(message), cancel);
    assert!(result.unwrap_err().is_cancelled());
    assert_eq!(start.elapsed().as_secs(), 1);
    assert_eq!(calls.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn zero_is_unlimited() {
    let calls = Calls::default();
    let stack = stack(RateLimitLayer::per_second(0), &calls);
    let start = Instant::now();
    join_all((0..1_000).map(|_| stack.clone().oneshot(Message::new("x")))).await;
    assert_eq!((calls.lock().unwrap().len(), start.elapsed()), (1_000, Duration::ZERO));
}

#[test]
fn the_default_burst_is_a_tenth_of_a_second() {
    let burst =
        |tokens: u32, period| Limit { tokens: tokens.try_into().unwrap(), period, burst: None }.burst().get();
    assert_eq!(burst(100, SECOND), 10);
    assert_eq!(burst(5, SECOND), 1);
    assert_eq!(burst(60_000, 60 * SECOND), 100);
    assert_eq!(burst(1, 3600 * SECOND), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_closure_that_panics_fails_its_message_for_good() {
    let calls = Calls::default();
    let key = |message: &Message| if message.payload() == "bad" { panic!("boom") } else { 1 };
    let stack = stack(RateLimitLayer::per_second(10).per_key(key), &calls);
    let failure = stack.clone().oneshot(Message::new("bad")).await.unwrap_err();
    assert!(failure.is_permanent());
    assert_eq!(failure.cause(), "the closure for the key of the rate limit: panicked: boom");
    assert!(stack.oneshot(Message::new("good")).await.is_ok());
    assert_eq!(calls.lock().unwrap().len(), 1);
}
