//! How the cluster is: `/v1/status`, `/v1/doctor`. How the node is: `/healthz`, `/readyz`, `/metrics`, `/v1/node`.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header;
use serde::Deserialize;

use super::Shared;
use super::json;
use super::problem::Problem;
use super::schema::Node;
use crate::api::request::Params;
use crate::service::ErrorCode;
use crate::status::ClusterStatus;
use crate::status::Diagnosis;

/// The cluster: its nodes, groups and replicas
///
/// The node asks all others for how they stand, a second at most; whoever does not answer is in the document as `unreachable`.
/// Needs no leader and no majority.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, body = ClusterStatus)))]
pub(super) async fn cluster(State(context): State<Shared>) -> Response {
    json(StatusCode::OK, &context.service.status().await)
}

/// What is wrong with the cluster, in sentences, and what to do
///
/// The node looks twice, a second apart. The answer is 200 also when something is wrong: `healthy` says.
#[utoipa::path(get, path = "/v1/doctor", tag = "status", responses((status = 200, body = Diagnosis)))]
pub(super) async fn doctor(State(context): State<Shared>) -> Response {
    json(StatusCode::OK, &context.service.doctor().await)
}

/// The answering node
#[utoipa::path(get, path = "/v1/node", tag = "status", responses((status = 200, body = Node)))]
pub(super) async fn node(State(context): State<Shared>) -> Response {
    json(StatusCode::OK, &Node::from(context.service.node().await))
}

/// The answering node's counters, name to value
///
/// For tests and `statehouse bench`; the names may change. `/metrics` is for monitoring.
#[utoipa::path(get, path = "/v1/node/counters", tag = "status", responses((status = 200, body = std::collections::BTreeMap<String, u64>)))]
pub(super) async fn counters(State(context): State<Shared>) -> Response {
    json(StatusCode::OK, &context.service.counters().await)
}

/// Whether the process is alive
#[utoipa::path(get, path = "/healthz", tag = "status", responses((status = 200, description = "it is", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> Response {
    "ok\n".into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadyParams {
    verbose: Option<String>,
}

/// Whether the node is ready
///
/// The catalog and all local groups have a leader and have caught up. With `?verbose` the answer is the
/// document of `/v1/node`.
#[utoipa::path(get, path = "/readyz", tag = "status", params(("verbose" = Option<String>, Query, description = "answer in JSON, with all reasons")), responses(
    (status = 200, description = "it is", content((String = "text/plain"), (Node = "application/json"))),
    (status = 503, description = "it is not yet, and why", content((Problem = "application/problem+json"), (Node = "application/json"))),
))]
pub(super) async fn readyz(
    State(context): State<Shared>,
    Params(params): Params<ReadyParams>,
) -> Result<Response, Box<Problem>> {
    let node = context.service.node().await;
    let stopping = *context.stopping.borrow();
    let status = if node.ready && !stopping { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if params.verbose.is_some() {
        // Not a problem document: who asks for all reasons wants them in one form, ready or not.
        return Ok(json(status, &Node::from(node)));
    }
    if status == StatusCode::OK {
        return Ok("ready\n".into_response());
    }
    let why = if stopping { "the node is stopping".to_owned() } else { node.reasons.join("; ") };
    Err(Problem::new(ErrorCode::Unavailable, format!("not ready: {why}")))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "status", responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(context): State<Shared>) -> Response {
    let page = crate::observe::join_pages(&[context.service.metrics().await, context.metrics.page()]);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response()
}
