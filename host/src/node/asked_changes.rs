//! Changes of membership that an adapter asks for, on behalf of a client whom it trusts.
//!
//! The same changes as an operator's, one after the other. What an adapter waits for must end, so one that takes longer than
//! asked is cancelled: what it did stays, and asking again goes on from there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use crate::gateway::MemberChanger;
use crate::group::priority::PRIORITY_NEVER;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::membership::NodeChanges;
use crate::membership::Roster;
use crate::membership::last_voter;
use crate::membership::no_node;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::Service;
use crate::service::ServiceError;
use crate::service::ServiceResult;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::GroupId;
use crate::types::NodeId;

/// How long the changes may take when the adapter does not say.
const WAIT_MS: u64 = 60_000;
/// The longest that it may say: a change that came no further for so long is given up anyway.
const WAIT_MS_MAX: u64 = 600_000;
/// Between two attempts while the catalog has no leader.
const PAUSE: Duration = Duration::from_millis(100);
/// One look at a change waits so long for its end, milliseconds.
const LOOK_MS: u64 = 1_000;

impl<P: Platform, T: Transport> Node<P, T> {
    /// For the adapter of a group. It does not keep the node from ending.
    pub(super) fn member_changer(&self, group: GroupId) -> MemberChanger {
        let node = Arc::downgrade(&self.0);
        Arc::new(move |changes: NodeChanges| -> BoxFuture<'static, ServiceResult<Roster>> {
            let node = node.upgrade().map(Self);
            Box::pin(async move {
                let node = node.ok_or_else(|| ServiceError::new(ErrorCode::Unavailable, "the node has ended"))?;
                node.change_nodes(group, &changes).await
            })
        })
    }

    async fn change_nodes(&self, group: GroupId, changes: &NodeChanges) -> ServiceResult<Roster> {
        let wait_ms = changes.wait_ms.unwrap_or(WAIT_MS).min(WAIT_MS_MAX);
        let until = InstantOf::<P>::now() + Duration::from_millis(wait_ms);
        let unavailable = |why: String| ServiceError::new(ErrorCode::NoLeader, why);
        let nodes = self.wait_leaders_roster(CATALOG, CATALOG_NAME).await?;
        // What cannot be is said before the first step.
        check(changes, &nodes)?;
        for kind in changes.kinds(&nodes.voters()) {
            self.carry_out(kind, until).await?;
        }
        for wanted in &changes.priorities {
            self.set_priority(wanted.node, wanted.priority).await?;
        }
        if let Some(to) = changes.lead {
            self.have_lead(group, to, until).await?;
        }
        // A removed leader of the group has handed over a moment ago.
        loop {
            match self.leaders_roster(group).await {
                Ok(roster) => return Ok(roster),
                Err(why) if InstantOf::<P>::now() >= until => return Err(unavailable(why)),
                Err(_) => P::Runtime::sleep(PAUSE).await,
            }
        }
    }

    /// Has a node lead the group: asked again until it does, for a leader may be lost and who is to lead may lag.
    async fn have_lead(&self, group: GroupId, to: NodeId, until: InstantOf<P>) -> ServiceResult<()> {
        let Some(name) = self.group_by_id(group).map(|group| group.name().to_owned()) else {
            return Err(ServiceError::new(ErrorCode::GroupNotFound, format!("group {group} does not run here")));
        };
        if self.0.common.priorities.of(to) == Some(PRIORITY_NEVER) {
            let detail = format!("node {to} has priority {PRIORITY_NEVER}: it is not to lead");
            return Err(ServiceError::new(ErrorCode::BadRequest, detail));
        }
        loop {
            match self.transfer_leader(name.clone(), Some(to)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code == ErrorCode::MemberNotFound || InstantOf::<P>::now() >= until => {
                    return Err(error);
                }
                Err(error) if self.is_stopping() => return Err(error),
                Err(_) => P::Runtime::sleep(PAUSE).await,
            }
        }
    }

    /// Begins a change and waits for its end.
    async fn carry_out(&self, kind: ChangeKind, until: InstantOf<P>) -> ServiceResult<()> {
        let id = loop {
            match self.change_begin(kind.clone()).await {
                Ok(change) => break change.id,
                Err(error) if error.code != ErrorCode::NoLeader || InstantOf::<P>::now() >= until => return Err(error),
                Err(_) => P::Runtime::sleep(PAUSE).await,
            }
        };
        let mut waits_for = "the catalog has no leader".to_owned();
        loop {
            // That it cannot be looked at now says nothing of the change.
            match self.change_get(id, LOOK_MS).await.map(|change| change.state) {
                Ok(ChangeState::Done) => return Ok(()),
                Ok(ChangeState::Failed(error)) => return Err(error),
                Ok(ChangeState::Running(text)) => waits_for = text,
                Err(_) => P::Runtime::sleep(PAUSE).await,
            }
            if self.is_stopping() {
                let detail = format!("this node is stopping; change {id} goes on: {kind}");
                return Err(ServiceError::new(ErrorCode::Unavailable, detail));
            }
            if InstantOf::<P>::now() >= until {
                return self.give_up(id, format!("{kind}: {waits_for}")).await;
            }
        }
    }

    /// Cancels a change whose time is over, unless it has ended by itself.
    async fn give_up(&self, id: u64, waited_for: String) -> ServiceResult<()> {
        if self.change_cancel(id).await.is_err()
            && let Ok(change) = self.change_get(id, 0).await
        {
            match change.state {
                ChangeState::Done => return Ok(()),
                ChangeState::Failed(error) => return Err(error),
                ChangeState::Running(_) => {}
            }
        }
        Err(ServiceError::new(ErrorCode::Timeout, waited_for))
    }
}

type InstantOf<P> = <<P as Platform>::Runtime as AsyncRuntime>::Instant;

/// Whether all of them together can be: the nodes are known, and a voter stays. What is said of a node
/// that goes is for nobody.
fn check(changes: &NodeChanges, nodes: &Roster) -> ServiceResult<()> {
    let named = changes.add.iter().map(|add| add.node).chain(changes.remove.iter().copied());
    let mut named = named.chain(changes.priorities.iter().map(|wanted| wanted.node)).chain(changes.lead);
    if let Some(unknown) = named.find(|node| !nodes.members.contains_key(node)) {
        return Err(no_node(unknown));
    }
    let mut later = changes.priorities.iter().map(|wanted| wanted.node).chain(changes.lead);
    if let Some(gone) = later.find(|node| changes.remove.contains(node)) {
        return Err(ServiceError::new(ErrorCode::BadRequest, format!("node {gone} is to go")));
    }
    let mut voters = nodes.voters();
    voters.extend(changes.add.iter().filter(|add| !add.learner).map(|add| add.node));
    let listen = changes.add.iter().filter(|add| add.learner).map(|add| &add.node);
    match listen.chain(&changes.remove).find(|node| voters.remove(*node) && voters.is_empty()) {
        Some(last) => Err(last_voter(CATALOG_NAME, *last)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::membership::RosterMember;

    #[test]
    fn all_changes_together_must_leave_a_voter() {
        let member = |voter| RosterMember { address: String::new(), voter, matched: None, receives: None };
        let members = BTreeMap::from([(1, member(true)), (2, member(true)), (3, member(false))]);
        let nodes = Roster { members, ..Roster::default() };
        let checked = |json: &str| {
            let changes: NodeChanges = serde_json::from_str(json).unwrap();
            check(&changes, &nodes).map_err(|error| error.code)
        };
        assert_eq!(checked(r#"{"add":[{"node":3}],"remove":[1,2],"wait_ms":1}"#), Ok(()));
        assert_eq!(checked(r#"{"add":[{"node":3,"learner":true}],"remove":[1]}"#), Ok(()));
        assert_eq!(checked(r#"{"add":[{"node":3},{"node":4}]}"#), Err(ErrorCode::NodeNotFound));
        assert_eq!(checked(r#"{"add":[{"node":3}],"remove":[4]}"#), Err(ErrorCode::NodeNotFound));
        assert_eq!(checked(r#"{"remove":[1,2]}"#), Err(ErrorCode::LastVoter));
        assert_eq!(checked(r#"{"add":[{"node":3,"learner":true}],"remove":[2,1]}"#), Err(ErrorCode::LastVoter));
        assert_eq!(checked(r#"{"add":[{"node":2,"learner":true}]}"#), Ok(()));
        assert_eq!(checked(r#"{"add":[{"node":2,"learner":true}],"remove":[1]}"#), Err(ErrorCode::LastVoter));
        assert_eq!(checked(r#"{"add":[{"node":2,"learner":true},{"node":3}],"remove":[1]}"#), Ok(()));
        assert_eq!(checked(r#"{"priorities":[{"node":2,"priority":0},{"node":3}],"lead":1}"#), Ok(()));
        assert_eq!(checked(r#"{"priorities":[{"node":4,"priority":9}]}"#), Err(ErrorCode::NodeNotFound));
        assert_eq!(checked(r#"{"lead":4}"#), Err(ErrorCode::NodeNotFound));
        assert_eq!(checked(r#"{"lead":2,"remove":[2]}"#), Err(ErrorCode::BadRequest));
        assert!(serde_json::from_str::<NodeChanges>(r#"{"priorities":[{"node":4,"priority":256}]}"#).is_err());
        let all = r#"{"add":[{"node":2,"learner":true},{"node":3},{"node":4,"learner":true}],"remove":[1]}"#;
        let kinds = serde_json::from_str::<NodeChanges>(all).unwrap().kinds(&nodes.voters());
        let texts = kinds.iter().map(ChangeKind::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(texts, "add node 3, add node 4 as a learner, make node 2 a learner, remove node 1");
    }
}
