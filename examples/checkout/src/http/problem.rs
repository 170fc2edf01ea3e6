//! Answers that are no success, as RFC 9457 has them: `application/problem+json`.

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::order::{Order, Reason};

/// Seconds. Brokers that are restarted are back after some.
const AFTER_OUTAGE: &str = "5";
/// A confirm takes less.
const AFTER_BUSY: &str = "1";

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    errors: Vec<Reason>,
    retry_after: Option<&'static str>,
    order_id: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new(), retry_after: None, order_id: None }
    }

    /// The body is no JSON, too long, or says that it is something else.
    pub(super) fn unreadable(status: StatusCode, why: String) -> Self {
        Self::new(status, why)
    }

    pub(super) fn bad_key() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "an Idempotency-Key has 1 to 64 letters, digits, `-`, `_` and `.`, such as a UUID has",
        )
    }

    pub(super) fn invalid(errors: Vec<Reason>) -> Self {
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "this is no order") }
    }

    pub(super) fn other_under_key() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "this Idempotency-Key was used with another order")
    }

    pub(super) fn other_under_id() -> Self {
        Self::new(StatusCode::CONFLICT, "there is another order with this order_id")
    }

    pub(super) fn busy() -> Self {
        let detail = "the same order is being placed by another request";
        Self { retry_after: Some(AFTER_BUSY), ..Self::new(StatusCode::CONFLICT, detail) }
    }

    /// With the id, for a client that gave none and sent no key: its event may be out although no confirm came, so it
    /// must not be given another one.
    pub(super) fn unavailable(order: &Order) -> Self {
        let detail = "the order is not placed: the message broker does not confirm; send the same request again, with \
                      the same Idempotency-Key or with this order_id, and it will not be placed twice";
        Self {
            retry_after: Some(AFTER_OUTAGE),
            order_id: Some(order.order_id.clone()),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// Trying again does not help; what is wrong is in the log.
    pub(super) fn refused() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the order is not placed: its event cannot be published")
    }

    pub(super) fn no_such_order() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no order with this id was placed")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        if let Some(order_id) = self.order_id {
            body["order_id"] = json!(order_id);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}
