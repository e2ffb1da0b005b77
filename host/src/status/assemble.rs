//! Puts the reports of the nodes together.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::ChangeStatus;
use super::ClusterStatus;
use super::GroupStatus;
use super::NodeReport;
use super::NodeStatus;
use super::ReplicaReport;
use super::ReplicaStatus;
use crate::catalog::Catalog;
use crate::membership::Change;
use crate::membership::ChangeState;
use crate::types::CATALOG;
use crate::types::CATALOG_NAME;
use crate::types::GroupId;
use crate::types::NodeId;

/// A node as the one that was asked knows it.
#[derive(Clone, Debug)]
pub struct KnownNode {
    /// Its peer address.
    pub address: String,
    /// Its part in the catalog.
    pub role: String,
    /// What it reports, or why it does not.
    pub report: Result<NodeReport, String>,
}

/// All that there is to make a status of.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The node that was asked.
    pub node: NodeId,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The catalog as applied there: it is there without a leader too.
    pub catalog: &'a Catalog,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, KnownNode>,
}

impl Known<'_> {
    /// The document.
    pub fn status(&self) -> ClusterStatus {
        let mut groups = BTreeMap::from([(CATALOG, (CATALOG_NAME.to_owned(), None, BTreeSet::new()))]);
        for (name, entry) in &self.catalog.groups {
            groups.insert(entry.id, (name.clone(), Some(entry.module.clone()), entry.hosts.clone()));
        }
        // The node that was asked may be behind, and not know a group that others run.
        for replica in self.reports().flat_map(|report| &report.groups) {
            groups.entry(replica.group).or_insert_with(|| (replica.name.clone(), None, BTreeSet::new()));
        }
        let (running, ended): (Vec<_>, Vec<_>) = self.catalog.changes.values().partition(|change| change.is_running());
        let last = ended.into_iter().max_by_key(|change| (change.changed_ms, change.id));
        ClusterStatus {
            cluster: hex::encode(self.cluster),
            node: self.node,
            at_ms: self.at_ms,
            nodes: self.nodes.iter().map(|(id, node)| node_status(*id, node)).collect(),
            groups: groups
                .into_iter()
                .map(|(id, (name, module, hosts))| GroupStatus { name, module, ..self.group(id, &hosts) })
                .collect(),
            changes: running.into_iter().map(change_status).collect(),
            last_change: last.map(change_status),
            files: None,
        }
    }

    fn reports(&self) -> impl Iterator<Item = &NodeReport> {
        self.nodes.values().filter_map(|node| node.report.as_ref().ok())
    }

    fn group(&self, id: GroupId, hosts: &BTreeSet<NodeId>) -> GroupStatus {
        let found = self.reports().flat_map(|report| report.groups.iter().map(|replica| (report.node, replica)));
        let found: BTreeMap<NodeId, &ReplicaReport> = found.filter(|(_, replica)| replica.group == id).collect();
        // Two take themselves for the leader when one of them has yet to hear of the other: the later term is right.
        let leads = |replica: &&ReplicaReport| replica.state == "leader" && replica.roster.leader.is_some();
        let leader = found.values().copied().filter(leads).max_by_key(|replica| replica.term);
        let newest = found.values().copied().max_by_key(|replica| (replica.roster.membership, replica.commit));
        let members = leader.or(newest).map(|replica| replica.roster.clone()).unwrap_or_default();
        let commit = leader.map(|leader| leader.commit);
        let mut nodes: BTreeSet<NodeId> = hosts.clone();
        nodes.extend(members.members.keys());
        nodes.extend(found.keys());
        if id == CATALOG {
            nodes.extend(self.nodes.keys());
        }
        let replica = |node: NodeId| {
            let role = match members.members.get(&node) {
                Some(member) if member.voter => "voter",
                Some(_) => "learner",
                None => "none",
            };
            let blank = ReplicaStatus { node, role: role.to_owned(), ..ReplicaStatus::default() };
            match (found.get(&node), self.nodes.get(&node).map(|node| &node.report)) {
                (Some(report), _) => ReplicaStatus {
                    state: report.state.clone(),
                    leader: report.roster.leader,
                    term: Some(report.term),
                    commit: Some(report.commit),
                    applied: Some(report.applied),
                    lag: commit.map(|commit| commit.saturating_sub(report.applied)),
                    last: Some(report.roster.last),
                    log_entries: Some(report.roster.last.saturating_sub(report.purged)),
                    snapshot: report.snapshot.clone(),
                    membership_index: report.roster.membership.map(|membership| membership.index),
                    ..blank
                },
                (None, Some(Ok(_))) => ReplicaStatus { state: "missing".to_owned(), ..blank },
                (None, _) => ReplicaStatus {
                    state: "unreachable".to_owned(),
                    lag: leader.and_then(|leader| leader.roster.lag(node)),
                    ..blank
                },
            }
        };
        let of_role = |voter: bool| {
            let members = members.members.iter().filter(move |(_, member)| member.voter == voter);
            members.map(|(id, _)| *id).collect()
        };
        let most = |of: fn(&ReplicaReport) -> u64| found.values().map(|replica| of(replica)).max().unwrap_or(0);
        GroupStatus {
            id,
            leader: leader.map(|leader| leader.roster.node),
            term: leader.map_or_else(|| most(|replica| replica.term), |leader| leader.term),
            commit: commit.unwrap_or_else(|| most(|replica| replica.commit)),
            membership_index: members.membership.map_or(0, |membership| membership.index),
            joint: members.joint,
            voters: of_role(true),
            learners: of_role(false),
            replicas: nodes.into_iter().map(replica).collect(),
            ..GroupStatus::default()
        }
    }
}

fn node_status(id: NodeId, node: &KnownNode) -> NodeStatus {
    let blank = NodeStatus { id, address: node.address.clone(), role: node.role.clone(), ..NodeStatus::default() };
    match &node.report {
        Err(why) => NodeStatus { state: "unreachable".to_owned(), reasons: vec![why.clone()], ..blank },
        Ok(report) => NodeStatus {
            state: if report.reasons.is_empty() { "ready" } else { "not ready" }.to_owned(),
            reasons: report.reasons.clone(),
            version: Some(report.version.clone()),
            uptime_s: Some(report.uptime_s),
            replicas: Some(report.groups.len() as u64),
            leads: Some(report.groups.iter().filter(|replica| replica.state == "leader").count() as u64),
            priority: Some(report.priority),
            disk: Some(report.disk.clone()),
            ..blank
        },
    }
}

fn change_status(change: &Change) -> ChangeStatus {
    let (state, detail) = match &change.state {
        ChangeState::Running(waits_for) => ("running", waits_for.clone()),
        ChangeState::Done => ("done", String::new()),
        ChangeState::Failed(error) => ("failed", error.detail.clone()),
    };
    let (state, change_text) = (state.to_owned(), change.kind.to_string());
    ChangeStatus { id: change.id, change: change_text, state, detail, changed_ms: change.changed_ms }
}
