//! The routes: an order is placed, an order is shown, a balance is shown.

mod problem;
#[cfg(test)]
mod tests;
mod trace;

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use serde_json::Value;

use self::problem::Problem;
use crate::{
    database::Shop,
    order::{Order, Wanted, is_plain},
    orders::{DatabaseError, Orders, Placed},
};

const LONGEST_BODY: usize = 16 << 10;

/// What the routes work with.
pub(crate) struct Checkout<DB: Shop> {
    orders: Orders<DB>,
    patience: Duration,
}

impl<DB: Shop> Checkout<DB> {
    /// The database may take `patience` for a request.
    pub(crate) fn new(orders: Orders<DB>, patience: Duration) -> Self {
        Self { orders, patience }
    }

    /// A client that goes away, and one that is told to try again, cut no transaction: what has begun goes on.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, DatabaseError>> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        match tokio::time::timeout(self.patience, tokio::spawn(question)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panicked)) => Err(DatabaseError::broken(panicked)),
            Err(late) => Err(DatabaseError::unanswered(late)),
        }
    }
}

impl<DB: Shop> Clone for Checkout<DB> {
    fn clone(&self) -> Self {
        Self { orders: self.orders.clone(), patience: self.patience }
    }
}

pub(crate) fn routes<DB: Shop>(checkout: Checkout<DB>) -> Router {
    Router::new()
        .route("/orders", post(place::<DB>))
        .route("/orders/{order_id}", get(show::<DB>))
        .route("/accounts/{email}", get(account::<DB>))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(checkout)
}

#[derive(Debug, Serialize)]
struct Account {
    email: String,
    balance: i64,
}

async fn account<DB: Shop>(
    State(checkout): State<Checkout<DB>>,
    Path(email): Path<String>,
) -> Result<Json<Account>, Problem> {
    let (orders, of) = (checkout.orders.clone(), email.clone());
    let balance = checkout.ask(async move { orders.balance(&of).await }).await;
    let balance = balance.map_err(|error| Problem::database(&error))?;
    balance.map(|balance| Json(Account { email, balance })).ok_or_else(Problem::no_such_account)
}

async fn show<DB: Shop>(
    State(checkout): State<Checkout<DB>>,
    Path(order_id): Path<String>,
) -> Result<Json<Order>, Problem> {
    let orders = checkout.orders.clone();
    let order = checkout.ask(async move { orders.order(&order_id).await }).await;
    order.map_err(|error| Problem::database(&error))?.map(Json).ok_or_else(Problem::no_such_order)
}

async fn place<DB: Shop>(
    State(checkout): State<Checkout<DB>>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let key = idempotency_key(&headers)?;
    let body = Json::<Value>::from_request(request, &())
        .await
        .map_err(|why: JsonRejection| Problem::unreadable(why.status(), why.body_text()))?;
    let order = Wanted::read(&body).map_err(Problem::invalid)?.order(key);
    let (orders, placing) = (checkout.orders.clone(), order.clone());
    let (key, context) = (key.map(str::to_owned), trace::context(&headers));
    let placed = checkout.ask(async move { orders.place(&placing, key.as_deref(), &context).await }).await;
    match placed {
        // By an earlier request too: the answer that the client may have missed.
        Ok(Placed::Yes) => Ok(created(&order)),
        Ok(Placed::OtherUnderKey) => Err(Problem::other_under_key()),
        Ok(Placed::OtherUnderId) => Err(Problem::other_under_id()),
        Err(error) => Err(Problem::database(&error).of(&order)),
    }
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
