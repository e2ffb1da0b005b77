//! The words of membership, shared by catalog, groups, peers and the service: who belongs to a group, how that may
//! change, and what became of a change.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::service::ErrorCode;
use crate::service::MemberView;
use crate::service::ServiceError;
use crate::types::LogId;
use crate::types::NodeId;

/// A learner may be promoted when it lacks at most so many entries of the leader's log: what it still lacks then comes in
/// less time than an election takes.
pub const LAG_MAX: u64 = 1000;

/// One member of a group, as a replica of the group knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterMember {
    /// Its peer address.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// The index it is known to hold; only the leader knows.
    pub matched: Option<u64>,
    /// The snapshot that it is being sent; only the leader knows.
    pub receives: Option<Receives>,
}

/// A snapshot on its way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receives {
    /// Bytes that it has.
    pub bytes: u64,
    /// Of so many.
    pub of: u64,
}

/// Who belongs to a group, as one of its replicas knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The replica that answers.
    pub node: NodeId,
    /// The term it is in.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// The entry of the membership.
    pub membership: Option<LogId>,
    /// Whether that is committed. If not, another leader may undo it.
    pub committed: bool,
    /// Whether the replica helps to elect: not while it may have forgotten what it promised.
    pub votes: bool,
    /// Whether a change is half done: both the old and the new voters must agree to everything.
    pub joint: bool,
    /// The last index of its log.
    pub last: u64,
    /// The members.
    pub members: BTreeMap<NodeId, RosterMember>,
}

impl Roster {
    /// The voters' ids.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.members.iter().filter(|(_, member)| member.voter).map(|(id, _)| *id).collect()
    }

    /// The members, for those who ask from outside.
    pub fn views(&self) -> Vec<MemberView> {
        let view = |(id, member): (&NodeId, &RosterMember)| MemberView {
            id: *id,
            address: member.address.clone(),
            role: if member.voter { "voter" } else { "learner" }.to_string(),
            matched: member.matched,
        };
        self.members.iter().map(view).collect()
    }

    /// How many entries the member lacks, as the leader sees it; `None` when it holds nothing yet, or is no member.
    pub fn lag(&self, node: NodeId) -> Option<u64> {
        let matched = self.members.get(&node)?.matched?;
        Some(self.last.saturating_sub(matched))
    }

    /// Whether the member holds nearly all, and at least the entry that made it a member: then it knows itself.
    pub fn has_caught_up(&self, node: NodeId) -> bool {
        let matched = self.members.get(&node).and_then(|member| member.matched);
        let named = self.membership.map_or(0, |membership| membership.index);
        matched.is_some_and(|matched| matched >= named) && self.lag(node).is_some_and(|lag| lag <= LAG_MAX)
    }

    /// How far a member has come, in words.
    pub fn progress(&self, node: NodeId) -> String {
        let member = self.members.get(&node);
        if let Some(Receives { bytes, of }) = member.and_then(|member| member.receives) {
            return format!("node {node} has {} of {} MiB of a snapshot", bytes >> 20, of.div_ceil(1 << 20));
        }
        match member.and_then(|member| member.matched) {
            None => format!("node {node} holds nothing yet of {} entries", self.last),
            Some(matched) => format!("node {node} holds {matched} of {} entries", self.last),
        }
    }
}

/// One step of a change, as the leader of a group takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// A node receives the log and does not vote.
    AddLearner {
        /// The node.
        node: NodeId,
        /// Its peer address.
        address: String,
    },
    /// These vote, and no others; by joint consensus. Who voted and is not named is no member any more. All must be
    /// members already.
    Voters(BTreeSet<NodeId>),
    /// These vote, and no others; who voted and is not named stays as a learner.
    VotersAmong(BTreeSet<NodeId>),
    /// A learner is no member any more.
    RemoveLearner(NodeId),
    /// Ends a change that its leader left half done. `keeps`: who voted before and does not after it stays as a learner.
    Finish {
        /// As after [`Self::VotersAmong`].
        keeps: bool,
    },
}

/// What a node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Whether it votes: it does not while it recovers from an empty directory.
    pub votes: bool,
    /// Modules of the catalog whose files it does not have yet.
    pub modules_missing: u64,
    /// Groups that run there.
    pub groups: u64,
    /// Of these, how many it leads.
    pub leads: u64,
    /// Why it is not ready, one sentence each.
    pub reasons: Vec<String>,
}

/// What is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// A node that joined becomes a full one: it votes in the catalog, and holds a replica of every group that is on all
    /// nodes.
    NodeAdd {
        /// The node.
        node: NodeId,
        /// It receives all and votes nowhere.
        learner: bool,
    },
    /// A node leaves the cluster; groups of a number of replicas get another node for it where there is one.
    NodeRemove {
        /// The node.
        node: NodeId,
    },
    /// A node gets a replica of a group.
    MemberAdd {
        /// The group's name.
        group: String,
        /// The node.
        node: NodeId,
        /// It receives the log and does not vote.
        learner: bool,
    },
    /// A learner that has caught up votes from now on.
    MemberPromote {
        /// The group's name.
        group: String,
        /// The node.
        node: NodeId,
    },
    /// A node's replica of a group goes, with its files.
    MemberRemove {
        /// The group's name.
        group: String,
        /// The node.
        node: NodeId,
    },
    /// A voter receives the log and does not vote any more.
    MemberDemote {
        /// The group's name.
        group: String,
        /// The node.
        node: NodeId,
    },
    /// These nodes vote, and no others; in one step, once those that come have caught up. Learners that are not named stay learners.
    MemberSet {
        /// The group's name.
        group: String,
        /// The nodes.
        voters: BTreeSet<NodeId>,
    },
    /// A replica goes from one node to another; the group never has fewer voters meanwhile.
    GroupMove {
        /// The group's name.
        group: String,
        /// The node that has it.
        from: NodeId,
        /// The node that gets it.
        to: NodeId,
    },
    /// A group runs another module from some entry of its log on.
    GroupModule {
        /// The group's name.
        group: String,
        /// The module's name.
        module: String,
        /// Its digest.
        digest: [u8; 32],
    },
    /// A full node keeps its replicas and votes nowhere any more; groups of a number of replicas get another voter for it where there is
    /// one.
    NodeDemote {
        /// The node.
        node: NodeId,
    },
}

impl ChangeKind {
    /// The group it is about; `None` when it is about a node and all its groups.
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::NodeAdd { .. } | Self::NodeRemove { .. } | Self::NodeDemote { .. } => None,
            Self::MemberAdd { group, .. }
            | Self::MemberPromote { group, .. }
            | Self::MemberRemove { group, .. }
            | Self::MemberDemote { group, .. }
            | Self::MemberSet { group, .. }
            | Self::GroupModule { group, .. }
            | Self::GroupMove { group, .. } => Some(group),
        }
    }

    /// Whether it is about a group's module, and not about its members.
    pub fn is_of_module(&self) -> bool {
        matches!(self, Self::GroupModule { .. })
    }

    /// Whether both could touch the members of one group, or the module of one.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.is_of_module() != other.is_of_module() {
            return false;
        }
        match (self.group(), other.group()) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let as_learner = |learner: &bool| if *learner { " as a learner" } else { "" };
        match self {
            Self::NodeAdd { node, learner } => write!(f, "add node {node}{}", as_learner(learner)),
            Self::NodeRemove { node } => write!(f, "remove node {node}"),
            Self::NodeDemote { node } => write!(f, "make node {node} a learner"),
            Self::MemberAdd { group, node, learner } => {
                write!(f, "add node {node} to group {group}{}", as_learner(learner))
            }
            Self::MemberPromote { group, node } => write!(f, "promote node {node} in group {group}"),
            Self::MemberRemove { group, node } => write!(f, "remove node {node} from group {group}"),
            Self::MemberDemote { group, node } => write!(f, "make node {node} a learner of group {group}"),
            Self::MemberSet { group, voters } => {
                let voters: Vec<String> = voters.iter().map(NodeId::to_string).collect();
                write!(f, "make {} the voters of group {group}", voters.join(", "))
            }
            Self::GroupModule { group, module, .. } => write!(f, "change the module of group {group} to {module}"),
            Self::GroupMove { group, from, to } => write!(f, "move group {group} from node {from} to node {to}"),
        }
    }
}

/// A node that an adapter wants to be a full one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeToAdd {
    /// The node.
    pub node: NodeId,
    /// It receives all and votes nowhere.
    #[serde(default)]
    pub learner: bool,
}

/// How much an adapter wants a node to lead.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePriority {
    /// The node.
    pub node: NodeId,
    /// As `--election-priority`; left out: what it was started with counts again.
    #[serde(default)]
    pub priority: Option<u8>,
}

/// What an adapter asks for: nodes that come, then nodes that go, how much nodes are to lead, and who leads then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeChanges {
    /// Who comes.
    pub add: Vec<NodeToAdd>,
    /// Who goes.
    pub remove: Vec<NodeId>,
    /// Who is to lead how much.
    pub priorities: Vec<NodePriority>,
    /// Who leads the adapter's group afterwards.
    pub lead: Option<NodeId>,
    /// How long all of it may take, milliseconds.
    pub wait_ms: Option<u64>,
}

impl NodeChanges {
    /// The changes of membership, in the order in which they are carried out, where `full` are the nodes that vote: who comes, who of
    /// these only listens from now on, who goes.
    pub fn kinds(&self, full: &BTreeSet<NodeId>) -> Vec<ChangeKind> {
        let (listen, come): (Vec<_>, Vec<_>) = self.add.iter().partition(|add| add.learner && full.contains(&add.node));
        let come = come.iter().map(|add| ChangeKind::NodeAdd { node: add.node, learner: add.learner });
        let listen = listen.iter().map(|add| ChangeKind::NodeDemote { node: add.node });
        come.chain(listen).chain(self.remove.iter().map(|node| ChangeKind::NodeRemove { node: *node })).collect()
    }
}

/// A node as a configuration file lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListedNode {
    /// Its peer address.
    pub address: String,
    /// Whether it is to vote.
    pub voter: bool,
}

/// The nodes that a configuration file lists.
pub type NodeList = BTreeMap<NodeId, ListedNode>;

/// How far a change is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeState {
    /// It goes on, whoever leads the catalog; the text says what it waits for.
    Running(String),
    /// All of it is committed.
    Done,
    /// It was given up; what it had done by then stays.
    Failed(ServiceError),
}

/// A change and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its number, counted up from 1.
    pub id: u64,
    /// What it is.
    pub kind: ChangeKind,
    /// How far it is.
    pub state: ChangeState,
    /// When it began, Unix milliseconds.
    pub began_ms: u64,
    /// When it was last heard of, Unix milliseconds: its end, when it ended.
    pub changed_ms: u64,
}

impl Change {
    /// Whether it goes on.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ChangeState::Running(_))
    }
}

/// The error for a node that the cluster does not know.
pub fn no_node(node: NodeId) -> ServiceError {
    ServiceError::new(ErrorCode::NodeNotFound, format!("node {node} does not belong to the cluster"))
}

/// The error for a node that holds no replica of a group.
pub fn no_member(group: &str, node: NodeId) -> ServiceError {
    ServiceError::new(ErrorCode::MemberNotFound, format!("node {node} is no member of group {group}"))
}

/// The error for taking a group's last voter.
pub fn last_voter(group: &str, node: NodeId) -> ServiceError {
    let detail = format!("node {node} is the last voter of group {group}: nobody would hold its state");
    ServiceError::new(ErrorCode::LastVoter, detail)
}

/// The error for promoting a learner that lags.
pub fn not_caught_up(group: &str, node: NodeId, roster: &Roster) -> ServiceError {
    let detail = format!("{} of group {group}; it may lack {LAG_MAX} at most to be promoted", roster.progress(node));
    ServiceError::new(ErrorCode::NotCaughtUp, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(matched: Option<u64>, named: u64) -> Roster {
        let leader = openraft::vote::leader_id_std::CommittedLeaderId::new(3);
        Roster {
            last: 5000,
            membership: Some(LogId::new(leader, named)),
            members: BTreeMap::from([(
                4,
                RosterMember { address: String::new(), voter: false, matched, receives: None },
            )]),
            ..Roster::default()
        }
    }

    #[test]
    fn a_learner_has_caught_up_when_it_lacks_little_and_knows_that_it_is_one() {
        assert!(!roster(None, 10).has_caught_up(4));
        assert!(!roster(Some(5000 - LAG_MAX - 1), 10).has_caught_up(4));
        assert!(roster(Some(5000 - LAG_MAX), 10).has_caught_up(4));
        assert!(!roster(Some(4990), 4995).has_caught_up(4), "it has not seen the entry that names it");
        assert!(!roster(Some(5000), 10).has_caught_up(5), "it is no member");
    }

    #[test]
    fn changes_of_one_group_exclude_each_other_and_a_nodes_excludes_all() {
        let on = |group: &str| ChangeKind::MemberRemove { group: group.to_owned(), node: 1 };
        let node = ChangeKind::NodeRemove { node: 1 };
        assert!(on("a").overlaps(&on("a")) && !on("a").overlaps(&on("b")));
        assert!(node.overlaps(&on("a")) && on("a").overlaps(&node) && node.overlaps(&node));
    }

    /// A group that has lost its leader keeps a change of its module running: nothing that could bring a leader back waits for it.
    #[test]
    fn a_change_of_module_excludes_another_one_of_the_group_and_no_change_of_members() {
        let module =
            |group: &str| ChangeKind::GroupModule { group: group.to_owned(), module: "m".to_owned(), digest: [0; 32] };
        assert!(module("a").overlaps(&module("a")) && !module("a").overlaps(&module("b")));
        for other in [ChangeKind::NodeRemove { node: 1 }, ChangeKind::MemberRemove { group: "a".to_owned(), node: 1 }] {
            assert!(!module("a").overlaps(&other) && !other.overlaps(&module("a")));
        }
    }
}
