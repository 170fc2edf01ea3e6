use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::{TimedOut, TimeoutLayer};
use crate::{Failure, Message};

const SECOND: Duration = Duration::from_secs(1);

async fn takes(time: Duration) -> Result<(), Failure> {
    let handler = service_fn(move |_: Message| async move {
        tokio::time::sleep(time).await;
        Ok::<_, Failure>(())
    });
    ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .service(handler)
        .oneshot(Message::new("x"))
        .await
}

#[tokio::test(start_paused = true)]
async fn a_call_past_the_timeout_fails_transiently_and_says_after_what_time() {
    assert!(takes(9 * SECOND).await.is_ok());
    let start = Instant::now();
    let failure = takes(11 * SECOND).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(failure.is_transient());
    assert_eq!(failure.find::<TimedOut>().unwrap().after(), 10 * SECOND);
    assert_eq!(failure.chain(), "transient failure: no result after 10s");
}

#[tokio::test(start_paused = true)]
async fn the_call_is_dropped_when_the_time_is_over() {
    struct OnDrop(Arc<AtomicBool>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = dropped.clone();
    let mut stack =
        ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service_fn(move |_: Message| {
            let guard = OnDrop(guard.clone());
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                Ok::<_, Failure>(())
            }
        }));
    let mut call = Box::pin(stack.ready().await.unwrap().call(Message::new("x")));
    assert!((&mut call).await.is_err());
    assert!(dropped.load(Ordering::Relaxed), "dropped although the outer future is still held");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_as_it_is_dropped_has_timed_out() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let handler = service_fn(|_: Message| async {
        let _bomb = Bomb;
        std::future::pending::<Result<(), Failure>>().await
    });
    let stack = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(handler);
    let failure = stack.oneshot(Message::new("x")).await.unwrap_err();
    assert!(failure.find::<TimedOut>().is_some(), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn the_class_of_an_inner_failure_is_kept() {
    let handler = service_fn(|_: Message| async { Err::<(), _>(Failure::permanent("no")) });
    let stack = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(handler);
    assert!(stack.oneshot(Message::new("x")).await.unwrap_err().is_permanent());
}

#[tokio::test]
async fn readiness_is_that_of_what_is_inside() {
    let (mut mock, mut handle) = tower_test::mock::spawn_layer::<Message, (), _>(TimeoutLayer::new(SECOND));
    handle.allow(0);
    assert!(mock.poll_ready().is_pending());
    handle.allow(1);
    assert!(mock.poll_ready().is_ready());
}
