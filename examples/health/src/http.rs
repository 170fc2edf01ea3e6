//! The pages: two probes and the metrics.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use consumer::runtime::Health;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;

/// How often the exporter moves samples into its histograms; between two calls they take memory.
const UPKEEP: Duration = Duration::from_secs(5);

pub(crate) fn pages(health: Health, prometheus: PrometheusHandle) -> Router {
    tokio::spawn({
        let prometheus = prometheus.clone();
        async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                prometheus.run_upkeep();
            }
        }
    });
    let probes = Router::new().route("/live", get(live)).route("/ready", get(ready)).with_state(health);
    Router::new().route("/metrics", get(metrics)).with_state(prometheus).merge(probes)
}

/// 503 asks the orchestrator to restart this process.
async fn live(State(health): State<Health>) -> Response {
    let live = health.status().live;
    probe(live, &health)
}

/// 503 says that no messages are taken, which a restart would not help.
async fn ready(State(health): State<Health>) -> Response {
    let ready = health.status().ready;
    probe(ready, &health)
}

fn probe(good: bool, health: &Health) -> Response {
    let status = health.status();
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let said = json!({
        "live": status.live,
        "ready": status.ready,
        "reason": status.reason,
        "held": status.held,
        "executing": status.executing,
    });
    (code, Json(said)).into_response()
}

async fn metrics(State(prometheus): State<PrometheusHandle>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], prometheus.render()).into_response()
}
