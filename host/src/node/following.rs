//! The cluster follows its nodes' configuration files: who is listed becomes a member, who is not any more leaves.
//!
//! Each node knows the list of its own file, which the process reads again and again. The catalog's leader asks the catalog's voters for
//! theirs, and begins one change after the other towards what a majority of them list; the changes are those of `node/changes.rs`.
//!
//! Invariants:
//! - No change begins but towards the list that a majority of the voters' files are. A change that was begun towards one list leaves no
//!   majority to another one, unless files are edited: so while they differ the cluster goes one way or waits, and never to and fro.
//! - Who comes is in before anybody goes, and a list that names no voter is not followed.
//! - What a list asks for is done whole or not begun: one that gives a member another address is not followed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::lock;
use super::roster::ANSWER_TIME_MAX;
use crate::catalog::Catalog;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::membership::ListedNode;
use crate::membership::NodeList;
use crate::membership::Roster;
use crate::peer::Transport;
use crate::peer::message::Listed;
use crate::peer::message::Origin;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::platform::Platform;
use crate::service::ErrorCode;
use crate::service::Service;
use crate::service::ServiceError;
use crate::types::CATALOG;
use crate::types::NodeId;

/// Between two looks at the files.
const PAUSE: Duration = Duration::from_secs(1);
/// A change that came to nothing is begun again after so long.
const RETRY: Duration = Duration::from_secs(30);
/// What is still waited for is said again so often.
const REMINDER: Duration = Duration::from_secs(30);

/// What is to be done about the files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// The members are as listed.
    Nothing,
    /// Something is in the way, or to be waited for.
    Waits(String),
    /// This change.
    Begin(ChangeKind),
    /// An end to the change of this number, which the files do not ask for any more.
    Cancel(u64, ChangeKind),
}

/// What this node follows.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Its file, and what that lists.
    file: Option<(String, NodeList)>,
    /// What is waited for, as the leader.
    waits: Option<String>,
}

/// Their ids, in words.
pub(super) fn ids<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

/// The list in words.
fn words(list: &NodeList) -> String {
    let node = |(id, node): (&NodeId, &ListedNode)| match node.voter {
        true => id.to_string(),
        false => format!("{id} (observer)"),
    };
    list.iter().map(node).collect::<Vec<_>>().join(", ")
}

/// The list that a majority of the voters' files are; `Err` says how they differ.
fn agreed<'a>(
    voters: &BTreeSet<NodeId>,
    files: &'a BTreeMap<NodeId, Result<NodeList, String>>,
) -> Result<(&'a NodeList, Option<String>), String> {
    let mut lists: BTreeMap<&NodeList, Vec<NodeId>> = BTreeMap::new();
    let mut silent = Vec::new();
    for voter in voters {
        match files.get(voter) {
            Some(Ok(list)) => lists.entry(list).or_default().push(*voter),
            Some(Err(why)) => silent.push(format!("node {voter}: {why}")),
            None => silent.push(format!("node {voter} was not asked")),
        }
    }
    let count = voters.len();
    let told = |(list, by): (&&NodeList, &Vec<NodeId>)| {
        format!("{} of {count} files list nodes {} (by node {})", by.len(), words(list), ids(by))
    };
    match lists.iter().find(|(_, by)| by.len() > count / 2) {
        Some((list, _)) => {
            let others: Vec<String> = lists.iter().filter(|(other, _)| *other != list).map(told).collect();
            let others = (!others.is_empty()).then(|| {
                format!(
                    "{}, and a majority lists nodes {}: that holds until more are edited",
                    others.join("; "),
                    words(list)
                )
            });
            Ok((list, others))
        }
        None => {
            let mut all: Vec<String> = lists.iter().map(told).collect();
            all.extend(silent);
            Err(format!(
                "{}: no majority of the {count} voters' files says the same, so nothing changes",
                all.join("; ")
            ))
        }
    }
}

/// The last change of the node.
fn last_change(catalog: &Catalog, node: NodeId) -> Option<&Change> {
    let about = |change: &&Change| match &change.kind {
        ChangeKind::NodeAdd { node: id, .. }
        | ChangeKind::NodeRemove { node: id }
        | ChangeKind::NodeDemote { node: id } => *id == node,
        _ => false,
    };
    catalog.changes.values().filter(about).max_by_key(|change| change.id)
}

/// The next change towards what the files list.
fn next(catalog: &Catalog, roster: &Roster, files: &BTreeMap<NodeId, Result<NodeList, String>>) -> Next {
    let voters = roster.voters();
    let (list, others) = match agreed(&voters, files) {
        Ok(agreed) => agreed,
        Err(why) => return Next::Waits(why),
    };
    // It would be a list of a cluster that this one knows nothing of, and is begun anew by those who are listed perhaps.
    if !list.iter().any(|(id, node)| node.voter && voters.contains(id)) {
        let (listed, voters) = (words(list), ids(&voters));
        return Next::Waits(format!(
            "the files list nodes {listed}, none of which votes now ({voters} do): keep one of these listed until the others are in"
        ));
    }
    for (id, node) in list {
        if let Some(member) = roster.members.get(id).filter(|member| member.address != node.address) {
            return Next::Waits(format!(
                "the files list node {id} at {}, and it is a member at {}: an address does not change; list the old one, or the node \
                 under a new id",
                node.address, member.address
            ));
        }
        if let Some((other, _)) =
            roster.members.iter().find(|(other, member)| *other != id && member.address == node.address)
        {
            return Next::Waits(format!(
                "the files list node {id} at {}, which is the address of node {other}",
                node.address
            ));
        }
    }
    if let Some(running) = catalog.changes.values().find(|change| change.is_running() && !change.kind.is_of_module()) {
        let is_undone = match &running.kind {
            ChangeKind::NodeAdd { node, .. } => !list.contains_key(node),
            ChangeKind::NodeRemove { node } => list.contains_key(node),
            _ => false,
        };
        if is_undone {
            return Next::Cancel(running.id, running.kind.clone());
        }
        return Next::Waits(format!("change {} goes on: {}", running.id, running.kind));
    }
    // Who comes.
    for (id, node) in list {
        let Some(member) = roster.members.get(id) else { continue };
        // It came to nothing half way: it votes, but not in every group.
        let failed = || last_change(catalog, *id).is_some_and(|last| matches!(last.state, ChangeState::Failed(_)));
        // Groups that were made since have no replica where nobody votes.
        let lacks = || catalog.groups.values().any(|entry| entry.replicas.is_none() && !entry.hosts.contains(id));
        let is_to_come = match (node.voter, member.voter) {
            (true, true) => failed(),
            (true, false) => true,
            (false, true) => false,
            (false, false) => lacks(),
        };
        if is_to_come {
            return Next::Begin(ChangeKind::NodeAdd { node: *id, learner: !node.voter });
        }
    }
    let missing: Vec<String> = list
        .iter()
        .filter(|(id, _)| !roster.members.contains_key(id))
        .map(|(id, node)| format!("node {id} ({})", node.address))
        .collect();
    if !missing.is_empty() {
        return Next::Waits(format!(
            "the files list {}, which has not joined yet: start it with the same file",
            missing.join(", ")
        ));
    }
    // Who only listens from now on.
    for (id, node) in list {
        if !node.voter && voters.contains(id) {
            return Next::Begin(ChangeKind::NodeDemote { node: *id });
        }
    }
    // Who goes; the leader last, so that leadership moves once.
    let unlisted = || roster.members.keys().copied().filter(|id| !list.contains_key(id));
    let holds = |id: NodeId| voters.contains(&id) || catalog.groups.values().any(|entry| entry.hosts.contains(&id));
    if let Some(node) = unlisted().filter(|id| holds(*id)).min_by_key(|id| (*id == roster.node, *id)) {
        return Next::Begin(ChangeKind::NodeRemove { node });
    }
    // A node that is started before the files are edited has joined, and nobody is the worse for it: it is not sent away.
    let early: Vec<NodeId> = unlisted().collect();
    if !early.is_empty() {
        let text = format!("node {} has joined, and the files of a majority do not list it", ids(&early));
        return Next::Waits(match others {
            Some(others) => format!("{text}: {others}"),
            None => text,
        });
    }
    others.map_or(Next::Nothing, Next::Waits)
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// From now on the cluster is to have the nodes of this list, which `file` has, as far as it lies with this node.
    pub fn follow(&self, file: &str, list: NodeList) {
        let first = lock(&self.0.following).file.replace((file.to_owned(), list)).is_none();
        if first {
            drop(P::Runtime::spawn(self.clone().follow_files()));
        }
    }

    /// Whether the cluster's nodes are those of the configuration files: then nobody else may say who they are.
    pub(super) fn check_not_followed(&self, kind: &ChangeKind) -> Result<(), ServiceError> {
        if kind.group().is_some() {
            return Ok(());
        }
        match &lock(&self.0.following).file {
            None => Ok(()),
            Some((file, _)) => {
                let detail = format!(
                    "node {} follows {file} (--members-from-config), so the files say who the nodes are: edit them on all nodes",
                    self.id()
                );
                Err(ServiceError::new(ErrorCode::Forbidden, detail))
            }
        }
    }

    pub(super) fn listed(&self) -> Listed {
        let following = lock(&self.0.following);
        Listed { list: following.file.as_ref().map(|(_, list)| list.clone()), waits: following.waits.clone() }
    }

    /// Which cluster this node is of, for who has none.
    pub(super) async fn origin(&self) -> Result<Origin, String> {
        let setup = &self.0.setup;
        // As in `node/settle.rs`: who came later came to one that was there, and so did who gave its log up.
        let has_been = setup.members.is_empty() || self.repair().is_some() || lock(&self.0.settled).votes(CATALOG);
        let formed = has_been || self.0.catalog.last_index().await? > 0;
        Ok(Origin { node: setup.id, cluster: setup.cluster, formed, founders: setup.members.clone() })
    }

    /// What the catalog's leader waits for until the nodes are those of the files.
    pub(super) async fn files_wait(&self) -> Option<String> {
        // Where files are not followed, nobody is asked for any.
        lock(&self.0.following).file.as_ref()?;
        let leader = self.catalog().leader()?;
        match self.ask(leader, PeerRequest::Listed, ANSWER_TIME_MAX).await {
            Ok(PeerResponse::Listed(Listed { list: Some(_), waits })) => waits,
            Ok(_) => Some(format!("node {leader} leads, and does not follow its file")),
            Err(why) => Some(why),
        }
    }

    async fn list_of(&self, node: NodeId) -> Result<NodeList, String> {
        match self.ask(node, PeerRequest::Listed, ANSWER_TIME_MAX).await? {
            PeerResponse::Listed(listed) => listed.list.ok_or_else(|| "it does not follow its file".to_string()),
            other => Err(format!("node {node} answered {other:?}")),
        }
    }

    /// Runs as long as the node does; works while this node leads the catalog.
    async fn follow_files(self) {
        let now = <P::Runtime as AsyncRuntime>::Instant::now;
        let mut begun: Option<(ChangeKind, <P::Runtime as AsyncRuntime>::Instant)> = None;
        let mut said = now();
        while !self.is_stopping() {
            P::Runtime::sleep(PAUSE).await;
            if !self.catalog().leads() {
                begun = None;
                lock(&self.0.following).waits = None;
                continue;
            }
            let waits = match self.look_at_files().await {
                Ok(Next::Nothing) => None,
                Ok(Next::Waits(text)) => Some(text),
                Ok(Next::Begin(kind)) => match &begun {
                    Some((last, at)) if *last == kind && now() - *at < RETRY => {
                        Some(format!("{kind}: it is tried again soon"))
                    }
                    _ => match self.begin_change(kind.clone()).await {
                        Ok(change) => {
                            tracing::info!(change = change.id, %kind, "the configuration files ask for it");
                            begun = Some((kind.clone(), now()));
                            Some(format!("change {} goes on: {kind}", change.id))
                        }
                        Err(error) => Some(format!("{kind}: {error}")),
                    },
                },
                Ok(Next::Cancel(id, kind)) => {
                    tracing::info!(change = id, %kind, "the configuration files do not ask for it any more");
                    self.change_cancel(id).await.err().map(|error| format!("{kind}: {error}"))
                }
                Err(why) => Some(why),
            };
            let changed = std::mem::replace(&mut lock(&self.0.following).waits, waits.clone()) != waits;
            if changed || now() - said >= REMINDER {
                said = now();
                match waits {
                    Some(waits) => tracing::warn!(%waits, "the nodes are not yet those of the configuration files"),
                    None if changed => tracing::info!("the nodes are those of the configuration files"),
                    None => {}
                }
            }
        }
    }

    async fn look_at_files(&self) -> Result<Next, String> {
        // The same moment for both: a leader that is new may not have applied what its members know.
        let catalog = self.fresh_catalog().await.map_err(|error| error.to_string())?;
        let roster = self.leaders_roster(CATALOG).await?;
        if !roster.committed || roster.joint {
            return Ok(Next::Waits("the last change of the nodes is not committed yet".to_string()));
        }
        let asked = roster.voters().into_iter().map(async |voter| (voter, self.list_of(voter).await));
        let files = futures_util::future::join_all(asked).await.into_iter().collect();
        Ok(next(&catalog, &roster, &files))
    }
}

#[cfg(test)]
mod tests;
