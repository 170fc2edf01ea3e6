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

use crate::{
    order::{Order, Reason},
    orders::DatabaseError,
};

/// Seconds. Databases that are restarted are back after some.
const AFTER_OUTAGE: &str = "5";

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

    /// What is wrong is in the log.
    pub(super) fn database(error: &DatabaseError) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, "a request is not answered");
        if error.may_pass() {
            let detail =
                "the database does not answer: send the same request again, and it will not be done twice";
            Self { retry_after: Some(AFTER_OUTAGE), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
        } else {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database refuses this request")
        }
    }

    /// With the id, for a client that gave none and sent no key: its order may be placed although nobody has heard of
    /// it, so it must not be given another one.
    pub(super) fn of(self, order: &Order) -> Self {
        Self { order_id: Some(order.order_id.clone()), ..self }
    }

    pub(super) fn no_such_order() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no order with this id was placed")
    }

    pub(super) fn no_such_account() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no order of this address has reached its account")
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
