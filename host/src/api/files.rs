//! `/v1/groups/{name}/snapshot` and `/restore`: a group's state as a file. Neither file is ever held whole.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::StatusCode;
use serde::Deserialize;

use super::DIGEST;
use super::INDEX;
use super::Shared;
use super::json;
use super::problem::Problem;
use super::request::Name;
use super::request::Params;
use super::request::check_name;
use super::request::stream_body;
use super::schema::Binary;
use super::schema::Group;
use crate::service::RestoreRequest;

/// A group's state as a snapshot file
///
/// It holds everything that was acknowledged before the request, at the index in the header Statehouse-Index. The header
/// Statehouse-Digest and the file's last 32 bytes are the SHA-256 of all before these.
#[utoipa::path(get, path = "/v1/groups/{name}/snapshot", tag = "groups", params(("name" = String, Path)), responses(
    (status = 200, description = "the file", content_type = "application/octet-stream", body = inline(Binary), headers(
        ("Statehouse-Index" = u64, description = "the index that it holds everything up to"),
        ("Statehouse-Digest" = String, description = "SHA-256 of all but its last 32 bytes, hexadecimal"))),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn save(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    let saved = context.service.group_save(name).await?;
    let headers = [
        ("content-type", "application/octet-stream".to_owned()),
        ("content-length", saved.size.to_string()),
        (INDEX, saved.index.to_string()),
        (DIGEST, saved.digest),
    ];
    Ok((headers, Body::from_stream(saved.file)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreParams {
    module: Option<String>,
    replicas: Option<u64>,
    listen: Option<String>,
    listen_params: Option<String>,
}

/// Creates a group that begins from a snapshot file
///
/// Answers when a majority of its members holds the state durably and it has a leader. Nothing is made before the whole file
/// was seen and verified.
#[utoipa::path(
    post, path = "/v1/groups/{name}/restore", tag = "groups",
    params(
        ("name" = String, Path, description = "the new group's name"),
        ("module" = Option<String>, Query, description = "the module's name; left out: whichever has the digest that the file names"),
        ("replicas" = Option<u64>, Query, description = "how many replicas it gets; left out: one on every full node"),
        ("listen" = Option<String>, Query, description = "the addresses its adapter listens on, separated by commas"),
        ("listen_params" = Option<String>, Query, description = "what the adapter is told as `listen`: a JSON object"),
    ),
    request_body(content_type = "application/octet-stream", description = "the snapshot file", content = inline(Binary)),
    responses(
        (status = 201, body = Group),
        (status = 404, description = "module_not_found: the cluster lacks the module that wrote the file", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "file_damaged", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore(
    State(context): State<Shared>,
    Name(name): Name,
    Params(params): Params<RestoreParams>,
    body: Body,
) -> Result<Response, Box<Problem>> {
    check_name("group", &name)?;
    let listen_params = match params.listen_params.as_deref().map(serde_json::from_str::<serde_json::Value>) {
        None => serde_json::Value::Null,
        Some(Ok(value)) if value.is_object() => value,
        Some(_) => return Err(Problem::bad_request("`listen_params` is not an object, such as {\"auth\": true}")),
    };
    let listen = params.listen.unwrap_or_default();
    let listen = listen.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect();
    let request = RestoreRequest { name, module: params.module, replicas: params.replicas, listen, listen_params };
    let (file, rest) = stream_body(body);
    match context.service.group_restore(request, file).await {
        Ok(group) => Ok(json(StatusCode::CREATED, &Group::from(group))),
        Err(error) => {
            rest.await;
            Err(error.into())
        }
    }
}
