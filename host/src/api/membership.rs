//! `/v1/nodes`, `/v1/groups/{name}/members`, `/v1/changes`: who belongs to what, and how that changes.
//!
//! A change is asked for and goes on by itself; its record says how far it is. What makes no sense is refused at once.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::header;
use serde::Deserialize;

use super::Shared;
use super::json;
use super::problem::Problem;
use super::request::Id;
use super::request::Name;
use super::request::Params;
use super::request::read_json;
use super::schema::Balanced;
use super::schema::Change;
use super::schema::ChangeList;
use super::schema::ClusterNode;
use super::schema::Leader;
use super::schema::Member;
use super::schema::MemberList;
use super::schema::Move;
use super::schema::NewMember;
use super::schema::NodeList;
use super::schema::Priority;
use super::schema::Transfer;
use super::schema::Voters;
use crate::membership::ChangeKind;

/// The longest time that one request waits for a change.
const WAIT_MS_MAX: u64 = 60_000;

async fn begin(context: &Shared, kind: ChangeKind) -> Result<Response, Box<Problem>> {
    Ok(begun(context.service.change_begin(kind).await?))
}

/// The answer to who began a change.
pub(super) fn begun(change: crate::membership::Change) -> Response {
    let change = Change::from(change);
    let place = format!("/v1/changes/{}", change.id);
    ([(header::LOCATION, place)], json(StatusCode::ACCEPTED, &change)).into_response()
}

/// The nodes of the cluster
#[utoipa::path(get, path = "/v1/nodes", tag = "membership", responses(
    (status = 200, body = NodeList),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn nodes(State(context): State<Shared>) -> Result<Response, Box<Problem>> {
    let nodes = context.service.node_list().await?.into_iter().map(ClusterNode::from).collect();
    Ok(json(StatusCode::OK, &NodeList { nodes }))
}

/// Makes a node that has joined a full one
///
/// It votes in the catalog, and gets a replica of every group that is on all nodes; a learner receives all and votes
/// nowhere. Answers the change at once.
#[utoipa::path(post, path = "/v1/nodes", tag = "membership", request_body = NewMember, responses(
    (status = 202, description = "it has begun; `Location` names its record", body = Change),
    (status = 404, description = "node_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "change_in_progress", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn add_node(
    State(context): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let NewMember { node, learner } = read_json(&headers, body).await?;
    begin(&context, ChangeKind::NodeAdd { node, learner }).await
}

/// Removes a node from the cluster
///
/// Its replicas go first; a group of a number of replicas gets another node for it where there is one. Answers the
/// change at once.
#[utoipa::path(delete, path = "/v1/nodes/{id}", tag = "membership", params(("id" = u64, Path)), responses(
    (status = 202, description = "it has begun; `Location` names its record", body = Change),
    (status = 404, description = "node_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "last_voter, change_in_progress", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn remove_node(State(context): State<Shared>, Id(node): Id) -> Result<Response, Box<Problem>> {
    begin(&context, ChangeKind::NodeRemove { node }).await
}

/// Lets a full node vote nowhere any more
///
/// It keeps its replicas as learners, serves clients, and becomes a full node again by `POST /v1/nodes`; a group of a number of
/// replicas gets another voter for it where there is one. Answers the change at once.
#[utoipa::path(post, path = "/v1/nodes/{id}/demote", tag = "membership", params(("id" = u64, Path)), responses(
    (status = 202, description = "it has begun; `Location` names its record", body = Change),
    (status = 404, description = "node_not_found", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "already_exists, last_voter, change_in_progress", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn demote_node(State(context): State<Shared>, Id(node): Id) -> Result<Response, Box<Problem>> {
    begin(&context, ChangeKind::NodeDemote { node }).await
}

/// Says how much a node is to lead
///
/// Whatever it was started with (`--election-priority`), until null is said or the node is removed. A leader hands over to a voter of
/// a higher priority that lacks little; a node of priority 0 leads only where it is the only voter.
#[utoipa::path(post, path = "/v1/nodes/{id}/priority", tag = "membership", params(("id" = u64, Path)), request_body = Priority, responses(
    (status = 200, body = Priority),
    (status = 404, description = "node_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn set_priority(
    State(context): State<Shared>,
    Id(node): Id,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let wanted: Priority = read_json(&headers, body).await?;
    context.service.node_priority(node, wanted.priority).await?;
    Ok(json(StatusCode::OK, &wanted))
}

/// A group's members, as its leader sees them
///
/// The group `catalog` is the cluster's own: every node is a member of it.
#[utoipa::path(get, path = "/v1/groups/{name}/members", tag = "membership", params(("name" = String, Path)), responses(
    (status = 200, body = MemberList),
    (status = 404, description = "group_not_found", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn members(State(context): State<Shared>, Name(group): Name) -> Result<Response, Box<Problem>> {
    let members = context.service.member_list(group).await?.into_iter().map(Member::from).collect();
    Ok(json(StatusCode::OK, &MemberList { members }))
}

/// Gives a node a replica of a group
///
/// It catches up as a learner and votes then, unless it is to stay a learner. Answers the change at once.
#[utoipa::path(
    post, path = "/v1/groups/{name}/members", tag = "membership", params(("name" = String, Path)), request_body = NewMember,
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, node_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn add_member(
    State(context): State<Shared>,
    Name(group): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let NewMember { node, learner } = read_json(&headers, body).await?;
    begin(&context, ChangeKind::MemberAdd { group, node, learner }).await
}

/// Lets a learner that has caught up vote
#[utoipa::path(
    post, path = "/v1/groups/{name}/members/{id}/promote", tag = "membership",
    params(("name" = String, Path), ("id" = u64, Path, description = "the node")),
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, member_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists, not_caught_up, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn promote_member(
    State(context): State<Shared>,
    Name(group): Name,
    Id(node): Id,
) -> Result<Response, Box<Problem>> {
    begin(&context, ChangeKind::MemberPromote { group, node }).await
}

/// Lets a voter receive the log only
///
/// It keeps its replica as a learner, and can be promoted again. Answers the change at once.
#[utoipa::path(
    post, path = "/v1/groups/{name}/members/{id}/demote", tag = "membership",
    params(("name" = String, Path), ("id" = u64, Path, description = "the node")),
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, member_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists, last_voter, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn demote_member(
    State(context): State<Shared>,
    Name(group): Name,
    Id(node): Id,
) -> Result<Response, Box<Problem>> {
    begin(&context, ChangeKind::MemberDemote { group, node }).await
}

/// Says which nodes vote in a group, all at once
///
/// Those that come catch up as learners first; then the voters change in one step of joint consensus. Who voted and is not named loses its
/// replica; learners that are not named stay. Answers the change at once.
#[utoipa::path(
    put, path = "/v1/groups/{name}/members", tag = "membership", params(("name" = String, Path)), request_body = Voters,
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, node_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "last_voter, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn set_members(
    State(context): State<Shared>,
    Name(group): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let Voters { voters } = read_json(&headers, body).await?;
    begin(&context, ChangeKind::MemberSet { group, voters: voters.into_iter().collect() }).await
}

/// Removes a node's replica of a group, with its files
#[utoipa::path(
    delete, path = "/v1/groups/{name}/members/{id}", tag = "membership",
    params(("name" = String, Path), ("id" = u64, Path, description = "the node")),
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, member_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "last_voter, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn remove_member(
    State(context): State<Shared>,
    Name(group): Name,
    Id(node): Id,
) -> Result<Response, Box<Problem>> {
    begin(&context, ChangeKind::MemberRemove { group, node }).await
}

/// Moves a group's replica from one node to another
#[utoipa::path(
    post, path = "/v1/groups/{name}/move", tag = "membership", params(("name" = String, Path)), request_body = Move,
    responses(
        (status = 202, description = "it has begun; `Location` names its record", body = Change),
        (status = 404, description = "group_not_found, node_not_found, member_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "already_exists, change_in_progress", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn move_group(
    State(context): State<Shared>,
    Name(group): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let Move { from, to } = read_json(&headers, body).await?;
    begin(&context, ChangeKind::GroupMove { group, from, to }).await
}

/// Hands a group's leadership over
///
/// To the node that is named, or to the voter that is furthest ahead. Answers when it has moved. The group `catalog` is
/// the cluster's own.
#[utoipa::path(
    post, path = "/v1/groups/{name}/leader", tag = "membership", params(("name" = String, Path)), request_body = Transfer,
    responses(
        (status = 200, body = Leader),
        (status = 404, description = "group_not_found, member_not_found", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "last_voter: there is nobody else", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn transfer(
    State(context): State<Shared>,
    Name(group): Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Box<Problem>> {
    let Transfer { to } = read_json(&headers, body).await?;
    Ok(json(StatusCode::OK, &Leader { leader: context.service.leader_transfer(group, to).await? }))
}

/// Spreads the leaders over the nodes
///
/// Every node leads about as many groups as any other then, of those that are to lead. Answers when the leaders have moved; when one does not,
/// the others move all the same, and the error says why that one did not.
#[utoipa::path(post, path = "/v1/leaders/balance", tag = "membership", responses(
    (status = 200, body = Balanced),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn balance(State(context): State<Shared>) -> Result<Response, Box<Problem>> {
    let (mut moved, mut failed) = (Vec::new(), None);
    for one in crate::status::moves(&context.service.status().await) {
        match context.service.leader_transfer(one.group.clone(), Some(one.to)).await {
            Ok(_) => moved.push(one),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => Ok(json(StatusCode::OK, &Balanced { moved })),
        Some(error) => Err(error)?,
    }
}

/// The changes that run, and the last that ended
#[utoipa::path(get, path = "/v1/changes", tag = "membership", responses(
    (status = 200, body = ChangeList),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn changes(State(context): State<Shared>) -> Result<Response, Box<Problem>> {
    let changes = context.service.change_list().await?.into_iter().map(Change::from).collect();
    Ok(json(StatusCode::OK, &ChangeList { changes }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitParams {
    #[serde(default)]
    wait_ms: u64,
}

/// One change: how far it is, or what became of it
#[utoipa::path(
    get, path = "/v1/changes/{id}", tag = "membership",
    params(("id" = u64, Path), ("wait_ms" = Option<u64>, Query, description = "answer at its end, or after this many milliseconds (60000 at most)")),
    responses(
        (status = 200, body = Change),
        (status = 404, description = "change_not_found", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change(
    State(context): State<Shared>,
    Id(id): Id,
    Params(WaitParams { wait_ms }): Params<WaitParams>,
) -> Result<Response, Box<Problem>> {
    let mut stopping = context.stopping.clone();
    let stopped = async move {
        let _or_gone = stopping.wait_for(|stopping| *stopping).await;
    };
    let change = tokio::select! {
        change = context.service.change_get(id, wait_ms.min(WAIT_MS_MAX)) => change?,
        // The node goes down: how things stand now, and whoever asks goes on at another node.
        () = stopped => context.service.change_get(id, 0).await?,
    };
    Ok(json(StatusCode::OK, &Change::from(change)))
}

/// Gives up a running change
///
/// What it has done by then stays. A change of a group's module cannot be given up: its log decides.
#[utoipa::path(delete, path = "/v1/changes/{id}", tag = "membership", params(("id" = u64, Path)), responses(
    (status = 200, body = Change),
    (status = 404, description = "change_not_found: no such change runs", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "change_in_progress: it is a change of a group's module", body = Problem, content_type = "application/problem+json"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn cancel(State(context): State<Shared>, Id(id): Id) -> Result<Response, Box<Problem>> {
    Ok(json(StatusCode::OK, &Change::from(context.service.change_cancel(id).await?)))
}
