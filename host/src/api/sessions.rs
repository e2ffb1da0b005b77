//! `/v1/groups/{name}/sessions`.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::StatusCode;

use super::Shared;
use super::json;
use super::problem::Problem;
use super::request;
use super::request::Id;
use super::request::Name;
use super::request::read_json;
use super::schema::NewSession;
use super::schema::Session;

/// Opens a session
#[utoipa::path(
    post, path = "/v1/groups/{name}/sessions", tag = "sessions", params(("name" = String, Path)), request_body = NewSession,
    responses(
        (status = 201, description = "valid at every node", body = Session),
        (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn open(
    State(context): State<Shared>,
    Name(group): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let NewSession { timeout_ms } = read_json(&headers, body).await?;
    let session = context.service.session_open(group, timeout_ms).await?;
    Ok(json(StatusCode::CREATED, &Session::from(session)))
}

/// The secret of session `id`, from the header.
fn secret(headers: &HeaderMap, id: u64) -> Result<[u8; 16], Box<Problem>> {
    match request::session(headers)? {
        Some((in_header, secret)) if in_header == id => Ok(secret),
        Some((in_header, _)) => {
            Err(Problem::bad_request(format!("the path names session {id}, the header statehouse-session {in_header}")))
        }
        None => Err(Problem::bad_request(
            "the header statehouse-session is missing: ID:SECRET, as opening the session answered",
        )),
    }
}

/// A sign of life
///
/// The answer comes when the group's leader has heard of it.
#[utoipa::path(
    post, path = "/v1/groups/{name}/sessions/{id}/touch", tag = "sessions",
    params(("name" = String, Path), ("id" = u64, Path), ("Statehouse-Session" = String, Header, description = "ID:SECRET")),
    responses(
        (status = 204, description = "the leader has heard of it: its timeout starts anew"),
        (status = 403, description = "wrong_secret", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "group_not_found; session_not_found: it has ended", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "no_leader", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "timeout", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn touch(
    State(context): State<Shared>,
    Name(group): Name,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Box<Problem>> {
    context.service.session_touch(group, id, secret(&headers, id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Ends a session
#[utoipa::path(
    delete, path = "/v1/groups/{name}/sessions/{id}", tag = "sessions",
    params(("name" = String, Path), ("id" = u64, Path), ("Statehouse-Session" = String, Header, description = "ID:SECRET")),
    responses(
        (status = 204, description = "it is over"),
        (status = 403, description = "wrong_secret", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "group_not_found, session_not_found", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn close(
    State(context): State<Shared>,
    Name(group): Name,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Box<Problem>> {
    context.service.session_close(group, id, secret(&headers, id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
