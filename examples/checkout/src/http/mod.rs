//! The two routes: an order is placed, and an order is shown.

mod problem;
#[cfg(test)]
mod tests;
mod trace;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use consumer::{DynPublisher, Message, Outgoing, PublishError, Publisher};
use serde_json::Value;

use self::problem::Problem;
use crate::{
    order::{Order, Wanted, is_plain},
    orders::{Begun, Orders},
};

const LONGEST_BODY: usize = 16 << 10;

/// What the routes work with.
#[derive(Debug, Clone)]
pub(crate) struct Checkout {
    orders: Orders,
    publisher: DynPublisher,
    queue: Arc<str>,
    confirm: Duration,
}

impl Checkout {
    pub(crate) fn new(publisher: DynPublisher, queue: impl Into<Arc<str>>, confirm: Duration) -> Self {
        Self { orders: Orders::default(), publisher, queue: queue.into(), confirm }
    }

    /// Publishes and waits for the confirm, but not for ever.
    async fn publish(&self, order: &Order, caller: &HeaderMap) -> Result<(), PublishError> {
        let event = Message::builder()
            .headers(trace::context(caller))
            .payload(order.to_json())
            .key(order.order_id.clone())
            .id(order.message_id())
            .header("content-type", "application/json")
            .build();
        let confirm = self.publisher.publish(Outgoing::new(self.queue.clone(), event));
        tokio::time::timeout(self.confirm, confirm).await.unwrap_or_else(|_| {
            Err(PublishError::unavailable(format!("no confirm within {:?}", self.confirm)))
        })
    }
}

pub(crate) fn routes(checkout: Checkout) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{order_id}", get(show))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(checkout)
}

async fn show(
    State(checkout): State<Checkout>,
    Path(order_id): Path<String>,
) -> Result<Json<Order>, Problem> {
    checkout.orders.placed(&order_id).map(Json).ok_or_else(Problem::no_such_order)
}

async fn place(State(checkout): State<Checkout>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let key = idempotency_key(&headers)?;
    let body = Json::<Value>::from_request(request, &())
        .await
        .map_err(|why: JsonRejection| Problem::unreadable(why.status(), why.body_text()))?;
    let order = Wanted::read(&body).map_err(Problem::invalid)?.order(key);
    let attempt = match checkout.orders.begin(&order, key) {
        Begun::Yours(attempt) => attempt,
        // The answer that the client may have missed.
        Begun::Placed => return Ok(created(&order)),
        Begun::Busy => return Err(Problem::busy()),
        Begun::OtherUnderKey => return Err(Problem::other_under_key()),
        Begun::OtherUnderId => return Err(Problem::other_under_id()),
    };
    if let Err(error) = checkout.publish(&order, &headers).await {
        let message = order.message_id();
        tracing::warn!(message, error = &error as &dyn std::error::Error, "the event is not published");
        return Err(if error.is_transient() { Problem::unavailable(&order) } else { Problem::refused() });
    }
    attempt.placed();
    Ok(created(&order))
}

fn created(order: &Order) -> Response {
    (StatusCode::CREATED, [(LOCATION, format!("/orders/{}", order.order_id))], Json(order)).into_response()
}

/// What names this request over all its repetitions. In quotes, as the standard to be has it, or without.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    let plain = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if is_plain(plain) { Ok(Some(plain)) } else { Err(Problem::bad_key()) }
}
