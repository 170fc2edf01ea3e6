use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use super::{Attempt, Epoch, FromRef, Json, MessageId, MessageKey, State, handler};
use crate::{Defect, Failure, FailureKind, Headers, Message, Outcome, ResultExt};

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Order {
    order_id: String,
    total: u32,
}

fn order() -> Message {
    Message::builder().payload(r#"{"order_id":"o-17","total":5}"#).key("o-17").id("4711").build()
}

#[tokio::test]
async fn arguments_are_taken_from_the_message_and_the_state() {
    #[derive(Clone)]
    struct App {
        name: &'static str,
    }
    impl FromRef<App> for &'static str {
        fn from_ref(app: &App) -> Self {
            app.name
        }
    }
    #[expect(clippy::too_many_arguments)]
    async fn all(
        Json(order): Json<Order>,
        payload: Bytes,
        headers: Headers,
        MessageKey(key): MessageKey,
        id: MessageId,
        State(name): State<&'static str>,
        Attempt(attempt): Attempt,
        Epoch(epoch): Epoch,
    ) -> Result<(), Failure> {
        assert_eq!(order, Order { order_id: "o-17".into(), total: 5 });
        assert_eq!((payload.len(), headers.len()), (29, 1));
        assert_eq!((key.as_ref(), id.as_str(), name), (&b"o-17"[..], Some("4711"), "app"));
        assert_eq!((attempt, epoch), (3, 9));
        Ok(())
    }
    let service = handler(all).with_state(App { name: "app" });
    let outcome = service.oneshot(order().with_attempt(3).with_epoch(9)).await.unwrap();
    assert_eq!(outcome, Outcome::Processed);
}

#[tokio::test]
async fn fm26_what_does_not_decode_is_undecodable_and_says_where() {
    async fn decode(_: Json<Order>) {}
    let fails = |message| async move { handler(decode).oneshot(message).await.unwrap_err() };
    let failure = fails(Message::new(r#"{"order_id": 7}"#)).await;
    assert_eq!(failure.kind(), FailureKind::Undecodable);
    assert!(failure.chain().contains("expected a string at line 1 column 14"), "{}", failure.chain());
    let failure = fails(Message::builder().build()).await;
    assert_eq!(failure.kind(), FailureKind::Undecodable);
    assert!(failure.chain().contains("tombstone"), "{}", failure.chain());
    assert_eq!(fails(Message::new("")).await.kind(), FailureKind::Undecodable);
}

#[tokio::test]
async fn a_message_with_a_defect_reaches_no_handler() {
    async fn never() {
        unreachable!();
    }
    let defect = Defect::new("a header name is not UTF-8", vec!["header \"\\xff\"".into()]);
    let failure = handler(never).oneshot(Message::builder().defect(defect).build()).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Undecodable);
    assert!(failure.chain().contains("a header name is not UTF-8"), "{}", failure.chain());
}

#[tokio::test]
async fn an_option_is_none_only_where_there_is_nothing() {
    type Seen = (bool, bool, bool, bool, bool);
    let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
    let service = handler(
        |json: Option<Json<Order>>,
         payload: Option<Bytes>,
         key: Option<MessageKey>,
         id: Option<MessageId>,
         epoch: Option<Epoch>,
         State(seen): State<Arc<Mutex<Option<Seen>>>>| async move {
            *seen.lock().unwrap() =
                Some((json.is_some(), payload.is_some(), key.is_some(), id.is_some(), epoch.is_some()));
        },
    )
    .with_state(seen.clone());
    service.clone().oneshot(order().with_epoch(1)).await.unwrap();
    assert_eq!(seen.lock().unwrap().take(), Some((true, true, true, true, true)));
    service.clone().oneshot(Message::builder().build()).await.unwrap();
    assert_eq!(seen.lock().unwrap().take(), Some((false, false, false, false, false)));
    let failure = service.oneshot(Message::new("not json")).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Undecodable);
}

#[tokio::test]
async fn a_result_leaves_the_failure_to_the_handler() {
    async fn lenient(order: Result<Json<Order>, Failure>) -> Result<Outcome, Failure> {
        Ok(if order.is_err_and(|failure| failure.is_permanent()) {
            Outcome::Duplicate
        } else {
            Outcome::Processed
        })
    }
    assert_eq!(handler(lenient).oneshot(Message::new("?")).await.unwrap(), Outcome::Duplicate);
    assert_eq!(handler(lenient).oneshot(order()).await.unwrap(), Outcome::Processed);
}

#[tokio::test]
async fn a_missing_key_or_id_is_permanent() {
    async fn key(_: MessageKey) {}
    async fn id(_: MessageId) {}
    let key = handler(key).oneshot(Message::new("x")).await.unwrap_err();
    let id = handler(id).oneshot(Message::new("x")).await.unwrap_err();
    assert_eq!(key.chain(), "permanent failure: the message has no key");
    assert_eq!(id.chain(), "permanent failure: the message has no id");
}

#[tokio::test]
async fn any_error_is_transient_unless_it_says_otherwise() {
    async fn io() -> Result<(), std::io::Error> {
        Err(std::io::Error::other("reset"))
    }
    async fn text() -> Result<(), &'static str> {
        Err("away")
    }
    async fn permanent() -> Result<(), Failure> {
        "ten".parse::<u32>().permanent()?;
        Ok(())
    }
    assert!(handler(io).oneshot(Message::new("x")).await.unwrap_err().is_transient());
    assert!(handler(text).oneshot(Message::new("x")).await.unwrap_err().is_transient());
    assert!(handler(permanent).oneshot(Message::new("x")).await.unwrap_err().is_permanent());
}

#[tokio::test]
async fn a_token_is_cancelled_with_the_message_at_the_end_and_on_drop() {
    type Tokens = Arc<Mutex<Vec<CancellationToken>>>;
    let tokens = Tokens::default();
    let mut service =
        handler(|token: CancellationToken, payload: Bytes, State(tokens): State<Tokens>| async move {
            tokens.lock().unwrap().push(token.clone());
            if payload.is_empty() {
                token.cancelled().await;
            }
        })
        .with_state(tokens.clone());
    let last = || tokens.lock().unwrap().last().unwrap().clone();

    service.call(Message::new("done")).await.unwrap();
    assert!(last().is_cancelled(), "the call is over");

    let message = CancellationToken::new();
    let call = service.call(Message::new("").with_cancellation(message.clone()));
    message.cancel();
    call.await.unwrap();

    let message = CancellationToken::new();
    let mut call = Box::pin(service.call(Message::new("").with_cancellation(message.clone())));
    assert!(call.as_mut().now_or_never().is_none());
    assert!(!last().is_cancelled());
    drop(call);
    assert!(last().is_cancelled(), "what the handler spawned hears of the drop");
    assert!(!message.is_cancelled(), "the message itself is not cancelled");
}
