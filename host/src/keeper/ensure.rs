//! The module is loaded and the group exists: made through the node's own service, by whichever node gets there first.
//!
//! All nodes of a cluster do this at every start, at the same time. So every step looks first, takes "it is there
//! already" for success, and can be done any number of times.

use bytes::Bytes;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;

use super::settings::GROUP;
use super::settings::MODULE;
use crate::membership::ChangeKind;
use crate::service::ErrorCode;
use crate::service::GroupRequest;
use crate::service::GroupView;
use crate::service::Service;
use crate::service::ServiceError;
use crate::types::NodeId;

/// How far one look came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The group is there and this node listens: the group, and what the operator should know of it.
    Serving(Box<GroupView>, Vec<String>),
    /// Look again in a moment: what is being waited for.
    NotYet(String),
}

/// Takes the next steps towards a group that serves on this node; `observer` is this node, if it is to serve without a vote.
///
/// # Errors
/// What no waiting will heal: the module or the params are refused, the name is taken by another module's group.
pub async fn step(
    service: &dyn Service,
    wasm: &'static [u8],
    params: &Value,
    observer: Option<NodeId>,
) -> Result<Standing, ServiceError> {
    match towards(service, wasm, params, observer).await {
        Err(error) if is_passing(error.code) => Ok(Standing::NotYet(error.detail)),
        done => done,
    }
}

/// Whether a later try may find it otherwise.
fn is_passing(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoLeader
            | ErrorCode::Overloaded
            | ErrorCode::OutcomeUnknown
            | ErrorCode::Timeout
            | ErrorCode::DiskFull
            | ErrorCode::Unavailable
            | ErrorCode::ChangeInProgress
            // Removed between two looks.
            | ErrorCode::ModuleNotFound
            | ErrorCode::GroupNotFound
    )
}

async fn towards(
    service: &dyn Service,
    wasm: &'static [u8],
    params: &Value,
    observer: Option<NodeId>,
) -> Result<Standing, ServiceError> {
    let group = match service.group_get(GROUP.to_owned()).await {
        Ok(group) => group,
        Err(error) if error.code == ErrorCode::GroupNotFound => {
            load(service, wasm).await?;
            create(service, params).await?;
            service.group_get(GROUP.to_owned()).await?
        }
        Err(error) => return Err(error),
    };
    // What an operator let it run since is a keeper's too (`group upgrade`).
    let began_with = group.modules.first().map_or(&group.module, |first| &first.name);
    if began_with != MODULE && group.module != MODULE {
        let detail = format!("group {GROUP} is there and runs module {}, not {MODULE}", group.module);
        return Err(ServiceError::new(ErrorCode::AlreadyExists, detail));
    }
    let role = match observer {
        Some(node) => service.member_list(GROUP.to_owned()).await?.into_iter().find(|member| member.id == node),
        None => None,
    };
    if let (Some(node), None) = (observer, &role) {
        return observe(service, node).await.map(Standing::NotYet);
    }
    match group.listeners.iter().find(|listener| listener.state != "listening") {
        _ if group.listeners.is_empty() => Ok(Standing::NotYet("the group is being opened".to_owned())),
        Some(other) => Ok(Standing::NotYet(format!("{}: {}", other.address, other.state))),
        None => {
            let mut notes = notes(&group, wasm, params);
            if let Some(voter) = role.filter(|member| member.role == "voter") {
                let id = voter.id;
                notes.push(format!(
                    "node {id} votes, and was told to observe: `statehouse node demote {id}` takes its vote"
                ));
            }
            Ok(Standing::Serving(Box::new(group), notes))
        }
    }
}

/// This node becomes a learner of every group that is on all nodes; what is waited for. An operator who gave it a vote meanwhile is not
/// overruled: then it is a member.
async fn observe(service: &dyn Service, node: NodeId) -> Result<String, ServiceError> {
    // A change that is refused is an entry of the catalog, too: so it looks first.
    let changes = service.change_list().await?;
    if let Some(running) = changes.iter().find(|change| change.is_running()) {
        return Ok(format!("change {} goes on: {}", running.id, running.kind));
    }
    let begun = service.change_begin(ChangeKind::NodeAdd { node, learner: true }).await?;
    Ok(format!("change {} has begun: {}", begun.id, begun.kind))
}

async fn load(service: &dyn Service, wasm: &'static [u8]) -> Result<(), ServiceError> {
    if service.module_get(MODULE.to_owned()).await.is_ok() {
        return Ok(());
    }
    match service.module_add(MODULE.to_owned(), Bytes::from_static(wasm)).await {
        // Another node's, of another version of this program.
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(()),
        done => done.map(drop),
    }
}

async fn create(service: &dyn Service, params: &Value) -> Result<(), ServiceError> {
    let request = GroupRequest {
        name: GROUP.to_owned(),
        module: MODULE.to_owned(),
        params: params.clone(),
        ..GroupRequest::default()
    };
    match service.group_create(request).await {
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(()),
        done => done.map(drop),
    }
}

/// What holds, where it is not what this node was told.
fn notes(group: &GroupView, wasm: &[u8], params: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, wanted) in params.as_object().into_iter().flatten() {
        let Some(made) = group.params.get(name).filter(|made| *made != wanted) else { continue };
        notes.push(format!("{name} is {made}, as the group was made with; this node was told {wanted}"));
    }
    if hex::encode(Sha256::digest(wasm)) != group.digest {
        notes.push(format!(
            "the group runs module {} ({}), not the version that came with this program: `module push --bundled {MODULE} --name NAME` and \
             `group upgrade {GROUP} --module NAME` let it",
            group.module,
            group.digest.get(..12).unwrap_or(&group.digest)
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use serde_json::json;

    use super::*;
    use crate::api::fake::Fake;

    const WASM: &[u8] = b"\0asm....";

    #[tokio::test]
    async fn the_group_is_made_once_however_often_one_looks() {
        let service = Fake::new(1);
        let params = json!({"skip_acl": false});
        // The fake has no listeners: the step after the group's making is waited for.
        for _ in 0..3 {
            let standing = step(&service, WASM, &params, None).await.unwrap();
            assert_eq!(standing, Standing::NotYet("the group is being opened".to_owned()));
        }
        let groups = service.group_list().await.unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].name.as_str(), groups[0].module.as_str()), (GROUP, MODULE));
        assert_eq!(groups[0].params, params);
    }

    /// Nobody has to say `node add --learner` for it, and it does not say it twice.
    #[tokio::test]
    async fn an_observer_makes_itself_a_learner_once() {
        let service = Fake::new(1);
        for look in ["change 1 has begun: add node 4 as a learner", "change 1 goes on: add node 4 as a learner"] {
            let standing = step(&service, WASM, &json!({}), Some(4)).await.unwrap();
            assert_eq!(standing, Standing::NotYet(look.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_group_of_another_module_is_not_taken_over() {
        let service = Fake::new(1);
        service.module_add("counter".to_owned(), Bytes::from_static(WASM)).await.unwrap();
        let other = GroupRequest { name: GROUP.to_owned(), module: "counter".to_owned(), ..GroupRequest::default() };
        service.group_create(other).await.unwrap();
        let error = step(&service, WASM, &json!({}), None).await.unwrap_err();
        assert!(error.detail.contains("runs module counter"), "{error}");
    }

    /// It was taken for a group of somebody else's, and the node ended at its next start.
    #[tokio::test]
    async fn a_group_that_an_operator_upgraded_is_a_keepers_still() {
        let service = Fake::new(1);
        step(&service, WASM, &json!({}), None).await.unwrap();
        service.module_change(GROUP.to_owned(), "znode-tree-2".to_owned()).await.unwrap();
        let group = service.group_get(GROUP.to_owned()).await.unwrap();
        assert_eq!(group.module, "znode-tree-2");
        let standing = step(&service, WASM, &json!({}), None).await.unwrap();
        assert_eq!(standing, Standing::NotYet("the group is being opened".to_owned()));
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        assert!(is_passing(ErrorCode::NoLeader) && is_passing(ErrorCode::OutcomeUnknown));
        for code in [ErrorCode::ModuleRefused, ErrorCode::BadRequest, ErrorCode::GroupStopped, ErrorCode::Internal] {
            assert!(!is_passing(code), "{code:?}");
        }
    }
}
