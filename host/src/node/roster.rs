//! Who holds what, asked of who knows: a group's leader, a node itself.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::lock;
use crate::catalog::Catalog;
use crate::membership::Condition;
use crate::membership::Roster;
use crate::peer::CallError;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::CATALOG;
use crate::types::GroupId;
use crate::types::NodeId;

/// How long a node may take to say how it stands.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_millis(1000);

impl<P: Platform, T: Transport> Node<P, T> {
    /// Asks `node`, which may be this one.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        request: PeerRequest<P::Runtime>,
        limit: Duration,
    ) -> Result<PeerResponse<P::Runtime>, String> {
        self.ask_once(node, request, limit).await.map_err(|error| match error {
            CallError::Refused { node: own, reason } if own == self.id() => reason,
            error => error.to_string(),
        })
    }

    /// The same; the error says whether the node may have acted on it.
    pub(super) async fn ask_once(
        &self,
        node: NodeId,
        request: PeerRequest<P::Runtime>,
        limit: Duration,
    ) -> Result<PeerResponse<P::Runtime>, CallError> {
        if node == self.id() {
            // Boxed: answering may ask again.
            let answered = Box::pin(self.answer(node, request)).await;
            return answered.map_err(|reason| CallError::Refused { node, reason });
        }
        let asked = call::<P::Runtime, T>(&self.0.setup.transport, node, Lane::Control, &request);
        match P::Runtime::timeout(limit, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Lost { node, reason: format!("no answer within {} ms", limit.as_millis()) }),
        }
    }

    /// The roster of a group as `node` knows it.
    pub(super) async fn roster_at(&self, node: NodeId, group: GroupId) -> Result<Roster, String> {
        match self.ask(node, PeerRequest::Roster(group), ANSWER_TIME_MAX).await? {
            PeerResponse::Roster(roster) => Ok(roster),
            other => Err(format!("node {node} answered {other:?}")),
        }
    }

    /// The nodes that may hold a replica of the group.
    fn hosts(&self, group: GroupId) -> BTreeSet<NodeId> {
        if group == CATALOG {
            return self.0.catalog.standing().members.iter().map(|member| member.id).collect();
        }
        let catalog = self.0.view.get();
        let entry = catalog.groups.values().find(|entry| entry.id == group);
        entry.map(|entry| entry.hosts.clone()).unwrap_or_default()
    }

    /// The roster of a group as its leader sees it; a quorum has just agreed that it leads. Without that, one that was replaced
    /// and has not heard of it would answer with members of the past, and a replica that is one again would lose its files.
    pub(super) async fn leaders_roster(&self, group: GroupId) -> Result<Roster, String> {
        let hosts = self.hosts(group);
        let mut failed = "none of its nodes knows a leader".to_string();
        let mut asked = BTreeSet::new();
        let mut hint = self.group_by_id(group).and_then(|group| group.leader());
        while let Some(node) = hint.filter(|node| !asked.contains(node)) {
            asked.insert(node);
            match self.roster_at(node, group).await {
                Ok(roster) if roster.leader == Some(node) => match self.roster_of_leader(node, group).await {
                    Ok(roster) => return Ok(roster),
                    Err(error) => {
                        failed = error;
                        break;
                    }
                },
                Ok(roster) => hint = roster.leader,
                Err(error) => {
                    failed = error;
                    break;
                }
            }
        }
        let others = hosts.iter().filter(|node| !asked.contains(node)).map(|node| self.roster_at(*node, group));
        let mut leaders = BTreeSet::new();
        for answer in futures_util::future::join_all(others).await {
            match answer {
                // It may be none of the hosts that this node knows: no longer, or not yet.
                Ok(roster) => leaders.extend(roster.leader),
                Err(error) => failed = error,
            }
        }
        for leader in leaders.into_iter().chain(hint).filter(|leader| !asked.contains(leader)) {
            match self.roster_of_leader(leader, group).await {
                Ok(roster) => return Ok(roster),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn roster_of_leader(&self, node: NodeId, group: GroupId) -> Result<Roster, String> {
        match self.ask(node, PeerRequest::LeadersRoster(group), ANSWER_TIME_MAX).await? {
            PeerResponse::Roster(roster) => Ok(roster),
            other => Err(format!("node {node} answered {other:?}")),
        }
    }

    /// Which of these nodes have a replica of the group that answers.
    pub(super) async fn answering(&self, group: GroupId, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let asked = nodes.iter().copied();
        let asked = asked.map(|node| async move { self.roster_at(node, group).await.is_ok().then_some(node) });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What `node` holds.
    pub(super) async fn condition_of(&self, node: NodeId) -> Result<Condition, String> {
        match self.ask(node, PeerRequest::Condition, ANSWER_TIME_MAX).await? {
            PeerResponse::Condition(condition) => Ok(condition),
            other => Err(format!("node {node} answered {other:?}")),
        }
    }

    /// What this node holds.
    pub(super) async fn condition(&self) -> Condition {
        let groups: Vec<_> = lock(&self.0.groups).values().cloned().collect();
        let catalog = self.0.view.get();
        Condition {
            votes: self.may_vote(),
            modules_missing: self.missing_modules(&catalog).await.len() as u64,
            groups: groups.len() as u64,
            leads: groups.iter().filter(|group| group.leads()).count() as u64,
            reasons: self.not_ready(),
        }
    }

    async fn missing_modules(&self, catalog: &Catalog) -> Vec<[u8; 32]> {
        let (files, digests) = (self.0.files.clone(), catalog.modules_needed().into_iter().collect());
        let look = move |digests: Vec<[u8; 32]>| {
            digests.into_iter().filter(|digest| !files.exists(digest)).collect::<Vec<[u8; 32]>>()
        };
        self.0.setup.platform.run_guest(move || look(digests)).await.unwrap_or_default()
    }

    /// Fetches the files of modules that no group here runs: a node that becomes a full one must be able to give them to the
    /// next.
    pub(super) async fn fetch_modules(&self, catalog: &Catalog) {
        for digest in self.missing_modules(catalog).await {
            if let Err(error) = self.module_bytes(&digest).await {
                // Under the catalog's id: it is tried again as a group that could not be opened is.
                lock(&self.0.failures).insert(CATALOG, error);
            }
        }
    }
}
