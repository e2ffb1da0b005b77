//! `apply` and `query`: the two calls that carry the load. No JSON, no copy, no middleware here.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header;
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::INDEX;
use super::Shared;
use super::patience;
use super::problem::Problem;
use super::request;
use super::request::Name;
use super::request::NoParams;
use super::request::Params;
use super::request::read_body;
use super::schema::Binary;
use crate::service::Applied;
use crate::service::ApplyRequest;
use crate::service::Consistency;
use crate::service::ErrorCode;

fn answer(applied: Applied) -> Response {
    let mut response = Response::new(Body::from(applied.reply));
    let headers = response.headers_mut();
    headers.insert(INDEX, HeaderValue::from(applied.index));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// Applies a command
///
/// The answer means that the command is on disk at a majority and applied. `outcome_unknown` means that
/// it may or may not be: with session and sequence number the same request can be sent again, to any node, and
/// is applied once.
#[utoipa::path(
    post, path = "/v1/groups/{name}/apply", tag = "commands",
    params(
        ("name" = String, Path),
        ("Statehouse-Session" = Option<String>, Header, description = "ID:SECRET, as opening the session answered"),
        ("Statehouse-Sequence" = Option<u64>, Header, description = "the command's number in the session, counted up from 1"),
        ("Statehouse-Timeout-Ms" = Option<u64>, Header, description = "how long the client waits"),
    ),
    request_body(content_type = "application/octet-stream", description = "the command, as the module understands it", content = inline(Binary)),
    responses(
        (status = 200, description = "the module's reply", body = inline(Binary), content_type = "application/octet-stream",
         headers(("Statehouse-Index" = u64, description = "the log index of the command"))),
        (status = 403, description = "wrong_secret", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "group_not_found, session_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "sequence_too_old", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "too_large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "rejected, trapped: nothing was changed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "no_leader, overloaded: nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "outcome_unknown; or timeout: nothing was done", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn apply(
    State(context): State<Shared>,
    Name(group): Name,
    // Whoever puts the sequence number there would take a retry for safe.
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let session = request::session(&headers)?;
    let sequence = request::sequence(&headers)?;
    let timeout_ms = request::timeout_ms(&headers)?;
    if sequence.is_some() && session.is_none() {
        return Err(Problem::new(
            ErrorCode::BadSequence,
            "the header statehouse-sequence comes without statehouse-session",
        ));
    }
    let command = read_body(&headers, body, context.options.command_bytes_max, "command-bytes-max").await?;
    let applied = context.service.apply(ApplyRequest { group, session, sequence, command, timeout_ms }).await?;
    Ok(answer(applied))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryParams {
    #[serde(default)]
    consistency: Consistency,
}

/// Answers a query
#[utoipa::path(
    post, path = "/v1/groups/{name}/query", tag = "commands",
    params(
        ("name" = String, Path),
        ("consistency" = Option<String>, Query, description = "`linearizable` (the default): sees every command acknowledged before; `lease`: the same, \
          if clocks run at nearly one speed; `local`: the answering node's state as it is"),
        ("Statehouse-Session" = Option<String>, Header, description = "ID:SECRET: the query sees what the session did, and touches it"),
        ("Statehouse-Timeout-Ms" = Option<u64>, Header, description = "how long the client waits"),
    ),
    request_body(content_type = "application/octet-stream", description = "the query, as the module understands it", content = inline(Binary)),
    responses(
        (status = 200, description = "the module's reply", body = inline(Binary), content_type = "application/octet-stream",
         headers(("Statehouse-Index" = u64, description = "the applied index it was answered at"))),
        (status = 403, description = "wrong_secret", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "group_not_found, session_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "rejected, trapped", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "no_leader, overloaded", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn query(
    State(context): State<Shared>,
    Name(group): Name,
    Params(params): Params<QueryParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let session = request::session(&headers)?;
    let patience = patience(&headers, &context.options)?;
    let query: Bytes = read_body(&headers, body, context.options.command_bytes_max, "command-bytes-max").await?;
    let answered =
        tokio::time::timeout(patience, context.service.query(group, params.consistency, query, session)).await;
    let applied = answered.map_err(|_| {
        Problem::new(ErrorCode::Timeout, format!("the query had no answer within {} ms", patience.as_millis()))
    })??;
    Ok(answer(applied))
}
