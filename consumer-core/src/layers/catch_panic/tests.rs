use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::{CatchPanicLayer, Panicked};
use crate::{Failure, Message};

#[tokio::test]
async fn a_panic_in_the_future_is_a_transient_failure_with_its_message() {
    let handler = service_fn(|message: Message| async move {
        assert!(message.payload().is_empty(), "payload of {} bytes", message.payload().len());
        Ok::<_, Failure>(())
    });
    let stack = ServiceBuilder::new().layer(CatchPanicLayer::new()).service(handler);
    let failure = stack.clone().oneshot(Message::new("xy")).await.unwrap_err();
    assert!(failure.is_transient());
    assert_eq!(failure.find::<Panicked>().unwrap().message(), "payload of 2 bytes");
    assert!(stack.oneshot(Message::new("")).await.is_ok(), "the next message is not affected");
}

#[tokio::test]
async fn a_panic_in_the_call_itself_is_caught() {
    let handler = service_fn(|_: Message| -> std::future::Ready<Result<(), Failure>> { panic!("early") });
    let stack = ServiceBuilder::new().layer(CatchPanicLayer::new()).service(handler);
    let failure = stack.oneshot(Message::new("x")).await.unwrap_err();
    assert_eq!(failure.chain(), "transient failure: panicked: early");
}

#[tokio::test]
async fn a_panic_with_a_value_that_is_no_text_is_told() {
    let handler = service_fn(|_: Message| async {
        std::panic::panic_any(17);
        #[expect(unreachable_code)]
        Ok::<(), Failure>(())
    });
    let stack = ServiceBuilder::new().layer(CatchPanicLayer::new()).service(handler);
    let failure = stack.oneshot(Message::new("x")).await.unwrap_err();
    assert_eq!(failure.chain(), "transient failure: panicked: with a value that is no text");
}

/// Counts its drops and panics in them.
struct Bomb(Arc<AtomicU32>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        if !std::thread::panicking() {
            panic!("second");
        }
    }
}

/// Panics when polled and again when dropped.
struct Broken {
    _bomb: Bomb,
}

impl Future for Broken {
    type Output = Result<(), Failure>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        panic!("first")
    }
}

#[tokio::test]
async fn the_future_is_dropped_at_once_even_if_that_panics_too() {
    let drops = Arc::new(AtomicU32::new(0));
    let bomb = drops.clone();
    let mut stack = ServiceBuilder::new()
        .layer(CatchPanicLayer::new())
        .service(service_fn(move |_: Message| Broken { _bomb: Bomb(bomb.clone()) }));
    let mut call = Box::pin(stack.ready().await.unwrap().call(Message::new("x")));
    let failure = (&mut call).await.unwrap_err();
    assert_eq!(failure.chain(), "transient failure: panicked: first");
    assert_eq!(drops.load(Ordering::Relaxed), 1, "dropped although the outer future is still held");
}

#[tokio::test]
async fn readiness_is_that_of_what_is_inside() {
    let (mut mock, mut handle) = tower_test::mock::spawn_layer::<Message, (), _>(CatchPanicLayer::new());
    handle.allow(0);
    assert!(mock.poll_ready().is_pending());
    handle.allow(1);
    assert!(mock.poll_ready().is_ready());
}
