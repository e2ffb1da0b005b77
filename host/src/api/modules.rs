//! `/v1/modules`.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::StatusCode;
use serde::Deserialize;

use super::Shared;
use super::json;
use super::problem::Problem;
use super::request::Name;
use super::request::Params;
use super::request::check_name;
use super::request::read_body;
use super::schema::Binary;
use super::schema::Module;
use super::schema::ModuleList;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddParams {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// Adds a module
///
/// Answers when a majority of the nodes holds the bytes durably. Adding the same bytes under the same
/// name again is a success.
#[utoipa::path(
    post, path = "/v1/modules", tag = "modules",
    params(("name" = String, Query, description = "its name: 1 to 63 of a-z 0-9 . _ -, the first a letter or digit")),
    request_body(content_type = "application/wasm", description = "the .wasm file", content = inline(Binary)),
    responses(
        (status = 201, body = Module),
        (status = 409, description = "already_exists", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "too_large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "module_refused; `reason` says why", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn add(
    State(context): State<Shared>,
    Params(params): Params<AddParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    check_name("module", &params.name)?;
    if params.name == "check" {
        return Err(Problem::bad_request("a module cannot be named \"check\": /v1/modules/check is a path of the API"));
    }
    let wasm = read_body(&headers, body, context.options.module_bytes_max, "module-bytes-max").await?;
    let module = context.service.module_add(params.name, wasm).await?;
    Ok(json(StatusCode::CREATED, &Module::from(module)))
}

/// Runs the upload gate and adds nothing
#[utoipa::path(
    post, path = "/v1/modules/check", tag = "modules",
    request_body(content_type = "application/wasm", description = "the .wasm file", content = inline(Binary)),
    responses(
        (status = 200, description = "it would be taken", body = Module),
        (status = 422, description = "module_refused; `reason` says why", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn check(
    State(context): State<Shared>,
    _: Params<NoParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let wasm = read_body(&headers, body, context.options.module_bytes_max, "module-bytes-max").await?;
    let module = context.service.module_check(wasm).await?;
    Ok(json(StatusCode::OK, &Module::from(module)))
}

/// All modules
#[utoipa::path(get, operation_id = "list_modules", path = "/v1/modules", tag = "modules", responses(
    (status = 200, body = ModuleList),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(State(context): State<Shared>) -> Result<Response, Box<Problem>> {
    let modules = context.service.module_list().await?.into_iter().map(Module::from).collect();
    Ok(json(StatusCode::OK, &ModuleList { modules }))
}

/// One module
#[utoipa::path(get, operation_id = "show_module", path = "/v1/modules/{name}", tag = "modules", params(("name" = String, Path)), responses(
    (status = 200, body = Module),
    (status = 404, description = "module_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    Ok(json(StatusCode::OK, &Module::from(context.service.module_get(name).await?)))
}

/// A module's file
#[utoipa::path(get, path = "/v1/modules/{name}/file", tag = "modules", params(("name" = String, Path)), responses(
    (status = 200, description = "the .wasm file", content_type = "application/wasm", body = inline(Binary)),
    (status = 404, description = "module_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn file(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    let wasm = context.service.module_file(name).await?;
    Ok(([(hyper::header::CONTENT_TYPE, "application/wasm")], wasm).into_response())
}

/// Removes a module that no group runs
#[utoipa::path(delete, operation_id = "remove_module", path = "/v1/modules/{name}", tag = "modules", params(("name" = String, Path)), responses(
    (status = 204, description = "it is gone"),
    (status = 404, description = "module_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "module_in_use", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn remove(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    context.service.module_remove(name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
