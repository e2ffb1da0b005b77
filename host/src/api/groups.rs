//! `/v1/groups`: create, look, remove.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::StatusCode;

use super::Shared;
use super::json;
use super::membership::begun;
use super::problem::Problem;
use super::request::Name;
use super::request::check_name;
use super::request::read_json;
use super::schema::Change;
use super::schema::Digest;
use super::schema::Group;
use super::schema::GroupList;
use super::schema::NewGroup;
use super::schema::Snapshot;
use super::schema::Tried;
use super::schema::TriedList;
use super::schema::WantedModule;
use crate::service::ErrorCode;
use crate::service::GroupRequest;
use crate::service::ServiceError;

/// Creates a group
///
/// Answers when it has a leader and its module is initialised.
#[utoipa::path(
    post, path = "/v1/groups", tag = "groups",
    request_body = NewGroup,
    responses(
        (status = 201, body = Group),
        (status = 404, description = "module_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "rejected or trapped: the module's init refused the params", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create(
    State(context): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let NewGroup { name, module, params, replicas, listen, listen_params } = read_json(&headers, body).await?;
    check_name("group", &name)?;
    check_name("module", &module)?;
    for (key, value) in [("params", &params), ("listen_params", &listen_params)] {
        if !value.is_object() {
            return Err(Problem::bad_request(format!("`{key}` is not an object, such as {{\"start\": 1}}")));
        }
    }
    let request = GroupRequest { name, module, params, replicas, listen, listen_params };
    let group = context.service.group_create(request).await?;
    Ok(json(StatusCode::CREATED, &Group::from(group)))
}

/// All groups
#[utoipa::path(get, operation_id = "list_groups", path = "/v1/groups", tag = "groups", responses(
    (status = 200, body = GroupList),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(State(context): State<Shared>) -> Result<Response, Box<Problem>> {
    let groups = context.service.group_list().await?.into_iter().map(Group::from).collect();
    Ok(json(StatusCode::OK, &GroupList { groups }))
}

/// One group, as the answering node sees it
#[utoipa::path(get, operation_id = "show_group", path = "/v1/groups/{name}", tag = "groups", params(("name" = String, Path)), responses(
    (status = 200, body = Group),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    Ok(json(StatusCode::OK, &Group::from(context.service.group_get(name).await?)))
}

/// Removes a group and its state from all nodes
#[utoipa::path(delete, operation_id = "remove_group", path = "/v1/groups/{name}", tag = "groups", params(("name" = String, Path)), responses(
    (status = 204, description = "it is gone"),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn remove(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    context.service.group_remove(name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The state does not go over to a module: not what was sent is wrong.
fn does_not_go_over(error: ServiceError) -> Box<Problem> {
    let refused = matches!(error.code, ErrorCode::Rejected | ErrorCode::Trapped);
    let mut problem = Box::<Problem>::from(error);
    if refused {
        problem.remedy =
            "nothing was changed: push a version of the module that takes this state over, or bring the state by \
                          commands into a form that this one takes"
                .into();
    }
    problem
}

/// Lets a group run another module
///
/// By an entry of its log: what the old module's `snapshot` says goes into the new one's `migrate`, or `restore`; sessions, timers and
/// indexes stay. Before it begins every replica that answers tries that on a copy of its state; if one finds that it does not
/// fit, nothing is done. Answers the change at once. A change of module cannot be cancelled; the way back is another one.
#[utoipa::path(
    put, path = "/v1/groups/{name}/module", tag = "groups", params(("name" = String, Path)), request_body = WantedModule,
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, module_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists: it runs that module; change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "rejected or trapped: the state does not go over", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change_module(
    State(context): State<Shared>,
    Name(name): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let WantedModule { module } = read_json(&headers, body).await?;
    let change = context.service.module_change(name, module).await.map_err(does_not_go_over)?;
    Ok(begun(change))
}

/// Tries another module on copies of the group's state, and changes nothing
#[utoipa::path(
    post, path = "/v1/groups/{name}/module/try", tag = "groups", params(("name" = String, Path)), request_body = WantedModule,
    responses(
        (status = 200, body = TriedList),
        (status = 404, description = "group_not_found, module_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "rejected or trapped: the state does not go over", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn try_module(
    State(context): State<Shared>,
    Name(name): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let WantedModule { module } = read_json(&headers, body).await?;
    let tried = context.service.module_try(name, module).await.map_err(does_not_go_over)?;
    Ok(json(StatusCode::OK, &TriedList { tried: tried.into_iter().map(Tried::from).collect() }))
}

/// A digest of the answering node's state
///
/// Equal on all nodes that have applied the same index.
#[utoipa::path(get, path = "/v1/groups/{name}/digest", tag = "groups", params(("name" = String, Path)), responses(
    (status = 200, body = Digest),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn digest(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    Ok(json(StatusCode::OK, &Digest::from(context.service.group_digest(name).await?)))
}

/// Takes a snapshot now, on the answering node, or where that holds no replica on one that does
#[utoipa::path(post, path = "/v1/groups/{name}/snapshot", tag = "groups", params(("name" = String, Path)), responses(
    (status = 200, body = Snapshot),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn snapshot(State(context): State<Shared>, Name(name): Name) -> Result<Response, Box<Problem>> {
    Ok(json(StatusCode::OK, &Snapshot { index: context.service.group_snapshot(name).await? }))
}
